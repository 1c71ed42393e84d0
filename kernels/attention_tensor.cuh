// What the attention kernels on tensor cores share: rows of a head in shared memory,
// fragments of them, results back to memory.
//
// A tile is ROWS tokens of one head, each D channels of bf16 and so D / 8 chunks of 16
// bytes; chunk c of row r stands at place(r, c), so that eight rows of one chunk, which
// ldmatrix reads at once, lie in different banks. What a head or a sequence lacks is
// filled with zeros.
#pragma once
#include "attention.cuh"
#include "matmul.cuh"

/// Tiles of heads of D channels.
template <int D> struct HeadTile {
    static constexpr int CHUNKS = D / 8, PITCH = D * 2;
    static_assert(D % 16 == 0, "whole steps of mma");

    /// Chunk c of row r.
    static INLINE unsigned at(int r, int c) {
        return r * PITCH + place<EIGHT_ROWS, CHUNKS>(r, c) * 16;
    }

    /// Where a lane's row of a fragment starts in a tile. Rows that are those of the left
    /// operand, or what is summed over of the right one (read transposed):
    static INLINE unsigned by_rows() {
        int lane = threadIdx.x % 32;
        return at(lane % 16, lane / 16);
    }
    /// Rows that are columns of the right operand:
    static INLINE unsigned by_columns() {
        int lane = threadIdx.x % 32;
        return at(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    }
};

/// Where a lane's fragments start in a tile: permutations stay within 128 bytes, so that
/// four words reach every step of 16 channels.
struct LaneSteps {
    unsigned at[4];
    INLINE explicit LaneSteps(unsigned first) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            at[k] = first ^ k * 32;
            keep(at[k]);
        }
    }
    INLINE unsigned operator()(int k) const { return at[k % 4] + k / 4 * 128; }
};

/// The same where `there`, without a branch, and else nothing.
INLINE void copy16_where(bool there, unsigned to, const void *from, bool inside) {
    asm volatile("{ .reg .pred there, ignore; setp.ne.u32 there, %3, 0; setp.eq.u32 ignore, %2, 0;"
                 " @there cp.async.cg.shared.global [%0], [%1], 16, ignore; }" ::"r"(to),
                 "l"(from), "r"((unsigned)inside), "r"((unsigned)there)
                 : "memory");
}

/// Brings tiles of one tensor's head into shared memory, one after the other: a thread has
/// chunks 128 bytes apart of every STEP-th row, and walks from tile to tile. Without
/// ALIGNED, 16 bytes of memory may straddle heads, and elements go one by one.
template <int D, int THREADS, bool ALIGNED> struct HeadRows {
    using Tile = HeadTile<D>;
    static constexpr int MOST = Tile::CHUNKS == 32 ? THREADS / 16 : 8;
    static constexpr int ALONG = Tile::CHUNKS < MOST ? Tile::CHUNKS : MOST, STEP = THREADS / ALONG;
    /// This thread's first chunk of the next tile.
    const char *from;
    unsigned pitch; // bytes from row to row
    int dim;        // channels from this thread's first one on
    unsigned slot;

    INLINE HeadRows(const void *tensor, Len head, unsigned pitch, int dim)
        : from((const char *)((const Bf16 *)tensor + head)), pitch(pitch), dim(dim) {
        int c = threadIdx.x % ALONG, r = threadIdx.x / ALONG;
        if (ALIGNED) {
            from += c * 16 + (Len)r * pitch;
            this->dim -= c * 8;
        }
        slot = Tile::at(r, c);
        keep(slot);
    }

    INLINE void seek(Len row) { from += row * (Len)pitch; }

    /// The next ROWS rows, of which `rows` exist.
    template <int ROWS> INLINE void fetch(unsigned tile, int rows = ROWS) { fetch<ROWS, 1>(tile, 0, rows); }

    /// Of TENSORS that lie `apart` bytes from each other, tile behind tile.
    template <int ROWS, int TENSORS> INLINE void fetch(unsigned tile, Len apart, int rows = ROWS) {
        if constexpr (ALIGNED) {
            static_assert(STEP % 8 == 0 && (ROWS % STEP == 0 || ROWS < STEP), "whole steps");
            int r = threadIdx.x / ALONG;
            // Without it the compiler keeps an address for each tensor.
            keep(from);
#pragma unroll
            for (int i = 0; i < (ROWS + STEP - 1) / STEP; i++) {
                unsigned to = tile + slot + i * STEP * Tile::PITCH;
                bool exists = rows == ROWS || i * STEP + r < rows;
                if (ROWS >= STEP || r < ROWS) {
#pragma unroll
                    for (int t = 0; t < TENSORS; t++)
#pragma unroll
                        for (int c = 0; c < Tile::CHUNKS; c += ALONG)
                            copy16(to + t * ROWS * Tile::PITCH + c * 16, from + i * STEP * (Len)pitch + t * apart + c * 16, exists && c * 8 < dim);
                }
            }
            seek(ROWS);
        } else {
#pragma unroll 1
            for (int i = threadIdx.x; i < ROWS * D; i += THREADS) {
                int r = i / D, c = i % D;
                const char *row = from + (Len)r * pitch;
#pragma unroll
                for (int t = 0; t < TENSORS; t++)
                    copy_element(tile + t * ROWS * Tile::PITCH + Tile::at(r, c / 8) + c % 8 * 2,
                                 (const Bf16 *)(row + t * apart) + c, r < rows && c < dim);
            }
            seek(ROWS);
        }
    }
};

/// d = a b + c.
INLINE void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, const float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
}

/// Step k of M times 16 rows of a tile, as left operands; `steps` of by_rows.
template <int D, int M>
INLINE void load_left(unsigned (&a)[M][4], unsigned tile, const LaneSteps &steps, int k) {
#pragma unroll
    for (int m = 0; m < M; m++) load_matrices(a[m], tile + steps(k) + m * 16 * HeadTile<D>::PITCH);
}

/// Step k of s += a b^T: M times 16 rows times the ROWS rows of a tile, over 16 channels;
/// `steps` of by_columns.
template <int D, int ROWS, int M>
INLINE void step(float (&s)[M][ROWS / 8][4], unsigned tile, const LaneSteps &steps, int k,
                 const unsigned (&a)[M][4]) {
#pragma unroll
    for (int j = 0; j < ROWS / 16; j++) {
        unsigned b[4];
        load_matrices(b, tile + steps(k) + j * 16 * HeadTile<D>::PITCH);
#pragma unroll
        for (int m = 0; m < M; m++) {
            mma(s[m][2 * j], a[m], b[0], b[1], s[m][2 * j]);
            mma(s[m][2 * j + 1], a[m], b[2], b[3], s[m][2 * j + 1]);
        }
    }
}

/// sums += w b: M times 16 rows of weights times the ROWS rows of a tile; `steps` of by_rows.
template <int D, int ROWS, int M>
INLINE void accumulate(float (&sums)[M][D / 8][4], const unsigned (&w)[M][ROWS / 16][4],
                       unsigned tile, const LaneSteps &steps) {
#pragma unroll
    for (int k = 0; k < ROWS / 16; k++) {
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            unsigned b[4];
            load_matrices_transposed(b, tile + steps(j) + k * 16 * HeadTile<D>::PITCH);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(sums[m][2 * j], w[m][k], b[0], b[1], sums[m][2 * j]);
                mma(sums[m][2 * j + 1], w[m][k], b[2], b[3], sums[m][2 * j + 1]);
            }
        }
    }
}

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

/// Two floats as bf16, the first in the lower half.
INLINE unsigned pack(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(const unsigned *)&pair;
}

/// 2^x; flushes to 0 below 2^-126.
INLINE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// Writes (or adds) a warp's 16 rows of results times factors of rows g and g + 8, by way
/// of 16 rows of shared memory that are the warp's own.
template <int D>
INLINE void deliver(void *tensor, Len at, Len pitch, int dim, Len rows, unsigned tile,
                    const float (&x)[D / 8][4], const float (&factor)[2], bool add) {
    using Tile = HeadTile<D>;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            unsigned word = pack(x[j][2 * h] * factor[h], x[j][2 * h + 1] * factor[h]);
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(tile + Tile::at(g + 8 * h, j) + t * 4), "r"(word) : "memory");
        }
    }
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < 16 * Tile::CHUNKS; i += 32) {
        int r = i / Tile::CHUNKS, c = i % Tile::CHUNKS;
        if (r >= rows || c * 8 >= dim) continue;
        unsigned w[4];
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                     : "r"(tile + Tile::at(r, c))
                     : "memory");
        Values<Bf16> values;
#pragma unroll
        for (int e = 0; e < 8; e++)
            values.v[e] = __uint_as_float(e % 2 ? w[e / 2] & 0xffff0000u : w[e / 2] << 16);
        values.write((Bf16 *)tensor + at + r * pitch + c * 8, min(8, dim - c * 8), add);
    }
    __syncwarp();
}
