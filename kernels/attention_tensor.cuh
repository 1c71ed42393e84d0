// What the attention kernels on tensor cores share: rows of a head in shared memory,
// fragments of them, results back to memory. T is bf16, or f32 rounded to tf32.
//
// A tile is ROWS tokens of one head, each D channels in chunks of 16 bytes. In bf16 chunk c
// of row r stands at place(r, c), in f32 rows are 16 bytes longer than their chunks: either
// way eight rows of one chunk, which ldmatrix reads at once, lie in different banks. What a
// head or a sequence lacks is filled with zeros.
#pragma once
#include "attention.cuh"
#include "matmul.cuh"

/// Whether T goes to the tensor cores as tf32.
template <typename T> constexpr bool IS_TF32 = sizeof(T) == 4;

/// Terms of an mma: 32 bytes.
template <typename T> constexpr int TERMS = 32 / sizeof(T);

/// Tiles of heads of D channels.
template <typename T, int D> struct HeadTile {
    static constexpr int CHUNKS = D / CHUNK<T>, PITCH = CHUNKS * 16 + (IS_TF32<T> ? 16 : 0);
    static_assert(D % (IS_TF32<T> ? 32 : 16) == 0, "whole groups of channels");

    /// Chunk c of row r.
    static INLINE unsigned at(int r, int c) {
        return r * PITCH + (IS_TF32<T> ? c : place<EIGHT_ROWS, CHUNKS>(r, c)) * 16;
    }

    /// Where a lane's row of a fragment starts in a tile. Rows that are those of the left
    /// operand, or in bf16 what is summed over of the right one (read transposed):
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
/// four words reach every step of 32 bytes.
template <typename T> struct LaneSteps {
    unsigned at[IS_TF32<T> ? 1 : 4];
    INLINE explicit LaneSteps(unsigned first) {
#pragma unroll
        for (int k = 0; k < (IS_TF32<T> ? 1 : 4); k++) {
            at[k] = first ^ k * 32;
            keep(at[k]);
        }
    }
    INLINE unsigned operator()(int k) const { return IS_TF32<T> ? at[0] + k * 32 : at[k % 4] + k / 4 * 128; }
};

/// Chunk of each 128 bytes that holds column n of results in tf32, one channel a mma: the
/// two that eight lanes read of a row lie in different banks, and those that a thread
/// writes make whole sectors with its neighbours'.
INLINE int chunk_of_column(int n) { return (n / 2 ^ n % 2) + n % 2 * 4; }

/// The same where `there`, without a branch, and else nothing.
INLINE void copy16_where(bool there, unsigned to, const void *from, bool inside) {
    asm volatile("{ .reg .pred there, ignore; setp.ne.u32 there, %3, 0; setp.eq.u32 ignore, %2, 0;"
                 " @there cp.async.cg.shared.global [%0], [%1], 16, ignore; }" ::"r"(to),
                 "l"(from), "r"((unsigned)inside), "r"((unsigned)there)
                 : "memory");
}

INLINE void load_quad(unsigned (&r)[4], unsigned at) {
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/// Brings tiles of one tensor's head into shared memory, one after the other: a thread has
/// chunks 128 bytes apart of every STEP-th row, and walks from tile to tile. Without
/// ALIGNED, 16 bytes of memory may straddle heads, and elements go one by one.
template <typename T, int D, int THREADS, bool ALIGNED> struct HeadRows {
    using Tile = HeadTile<T, D>;
    static constexpr int MOST = Tile::CHUNKS == 32 ? THREADS / 16 : 8;
    static constexpr int ALONG = Tile::CHUNKS < MOST ? Tile::CHUNKS : MOST, STEP = THREADS / ALONG;
    /// This thread's first chunk of the next tile.
    const char *from;
    unsigned pitch; // bytes from row to row
    int dim;        // channels from this thread's first one on
    unsigned slot;

    INLINE HeadRows(const void *tensor, Len head, unsigned pitch, int dim)
        : from((const char *)((const T *)tensor + head)), pitch(pitch), dim(dim) {
        int c = threadIdx.x % ALONG, r = threadIdx.x / ALONG;
        if (ALIGNED) {
            from += c * 16 + (Len)r * pitch;
            this->dim -= c * CHUNK<T>;
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
                            copy16(to + t * ROWS * Tile::PITCH + c * 16,
                                   from + i * STEP * (Len)pitch + t * apart + c * 16,
                                   exists && c * CHUNK<T> < dim);
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
                    copy_element(tile + t * ROWS * Tile::PITCH + Tile::at(r, c / CHUNK<T>) + c % CHUNK<T> * sizeof(T),
                                 (const T *)(row + t * apart) + c, r < rows && c < dim);
            }
            seek(ROWS);
        }
    }

    /// Rounds to tf32 what this thread has brought of TENSORS tiles of ROWS rows, once it
    /// has come and before others read it.
    template <int ROWS, int TENSORS> INLINE void round(unsigned tile) const {
        static_assert(ALIGNED || !IS_TF32<T>, "by 16 bytes");
        if constexpr (IS_TF32<T>) {
#pragma unroll
            for (int i = 0; i < (ROWS + STEP - 1) / STEP * TENSORS; i++) {
                if (ROWS < STEP && (int)threadIdx.x / ALONG >= ROWS) break;
#pragma unroll
                for (int c = 0; c < Tile::CHUNKS; c += ALONG) {
                    constexpr int ROWS_A_STEP = ROWS < STEP ? ROWS : STEP;
                    unsigned at = tile + slot + i * ROWS_A_STEP * Tile::PITCH + c * 16, v[4];
                    load_quad(v, at);
#pragma unroll
                    for (int e = 0; e < 4; e++) v[e] = rounded_to_tf32(v[e]);
                    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                                 : "memory");
                }
            }
        }
    }
};

/// d = a b + c.
INLINE void mma(Bf16, float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, const float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
}
INLINE void mma(float, float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, const float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
}

/// Step k of M times 16 rows of a tile, as left operands; `steps` of by_rows.
template <typename T, int D, int M>
INLINE void load_left(unsigned (&a)[M][4], unsigned tile, const LaneSteps<T> &steps, int k) {
#pragma unroll
    for (int m = 0; m < M; m++) load_matrices(a[m], tile + steps(k) + m * 16 * HeadTile<T, D>::PITCH);
}

/// Step k of s += a b^T: M times 16 rows times the ROWS rows of a tile, over 32 bytes of
/// channels; `steps` of by_columns.
template <typename T, int D, int ROWS, int M>
INLINE void step(float (&s)[M][ROWS / 8][4], unsigned tile, const LaneSteps<T> &steps, int k,
                 const unsigned (&a)[M][4]) {
#pragma unroll
    for (int j = 0; j < ROWS / 16; j++) {
        unsigned b[4];
        load_matrices(b, tile + steps(k) + j * 16 * HeadTile<T, D>::PITCH);
#pragma unroll
        for (int m = 0; m < M; m++) {
            mma(T(), s[m][2 * j], a[m], b[0], b[1], s[m][2 * j]);
            mma(T(), s[m][2 * j + 1], a[m], b[2], b[3], s[m][2 * j + 1]);
        }
    }
}

/// Two floats as bf16, the first in the lower half.
INLINE unsigned pack(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(const unsigned *)&pair;
}

/// Results of columns 8 j .. as part of a left operand: rows g, or g + 8 where h is 1. In
/// tf32 terms t and t + 4 of a fragment are columns 2 t and 2 t + 1.
template <typename T, int ROWS>
INLINE void put_left(unsigned (&w)[ROWS / TERMS<T>][4], int j, int h, float first, float second) {
    if constexpr (IS_TF32<T>) {
        w[j][h] = rounded_to_tf32(__float_as_uint(first));
        w[j][2 + h] = rounded_to_tf32(__float_as_uint(second));
    } else {
        w[j / 2][j % 2 * 2 + h] = pack(first, second);
    }
}

/// sums += w b: M times 16 rows of weights times the ROWS rows of a tile; `steps` of
/// by_rows, which tf32 has no use for: there is no transposed ldmatrix of words, and lanes
/// read chunks of two rows, a channel for each of four mma.
template <typename T, int D, int ROWS, int M>
INLINE void accumulate(float (&sums)[M][D / 8][4], const unsigned (&w)[M][ROWS / TERMS<T>][4],
                       unsigned tile, const LaneSteps<T> &steps) {
    using Tile = HeadTile<T, D>;
    if constexpr (IS_TF32<T>) {
        int lane = threadIdx.x % 32;
        unsigned first = tile + Tile::at(lane % 4 * 2, chunk_of_column(lane / 4));
#pragma unroll
        for (int k = 0; k < ROWS / 8; k++) {
#pragma unroll
            for (int j = 0; j < D / 32; j++) {
                unsigned b[2][4];
#pragma unroll
                for (int i = 0; i < 2; i++) load_quad(b[i], first + (k * 8 + i) * Tile::PITCH + j * 128);
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        mma(T(), sums[m][4 * j + e], w[m][k], b[0][e], b[1][e], sums[m][4 * j + e]);
            }
        }
    } else {
#pragma unroll
        for (int k = 0; k < ROWS / 16; k++) {
#pragma unroll
            for (int j = 0; j < D / 16; j++) {
                unsigned b[4];
                load_matrices_transposed(b, tile + steps(j) + k * 16 * Tile::PITCH);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma(T(), sums[m][2 * j], w[m][k], b[0], b[1], sums[m][2 * j]);
                    mma(T(), sums[m][2 * j + 1], w[m][k], b[2], b[3], sums[m][2 * j + 1]);
                }
            }
        }
    }
}

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

/// 2^x; flushes to 0 below 2^-126.
INLINE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// Writes (or adds) a warp's 16 rows of results times factors of rows g and g + 8; in bf16
/// by way of 16 rows of shared memory that are the warp's own.
template <typename T, int D>
INLINE void deliver(void *tensor, Len at, Len pitch, int dim, Len rows, unsigned tile,
                    const float (&x)[D / 8][4], const float (&factor)[2], bool add) {
    using Tile = HeadTile<T, D>;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if constexpr (IS_TF32<T>) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (g + 8 * h >= rows) continue;
            float *row = (float *)tensor + at + (g + 8 * h) * pitch;
#pragma unroll
            for (int j = 0; j < D / 32; j++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int channel = 32 * j + 4 * chunk_of_column(2 * t + e);
                    if (channel >= dim) continue;
                    float *to = row + channel, v[4];
                    float4 was = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    if (add) was = *(const float4 *)to;
#pragma unroll
                    for (int i = 0; i < 4; i++) v[i] = x[4 * j + i][2 * h + e] * factor[h];
                    // At once, which the compiler would take apart.
                    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                                 "f"(v[0] + was.x), "f"(v[1] + was.y), "f"(v[2] + was.z), "f"(v[3] + was.w)
                                 : "memory");
                }
            }
        }
        return;
    }
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
        load_quad(w, tile + Tile::at(r, c));
        Values<Bf16> values;
#pragma unroll
        for (int e = 0; e < 8; e++)
            values.v[e] = __uint_as_float(e % 2 ? w[e / 2] & 0xffff0000u : w[e / 2] << 16);
        values.write((Bf16 *)tensor + at + r * pitch + c * 8, min(8, dim - c * 8), add);
    }
    __syncwarp();
}
