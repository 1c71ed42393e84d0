// A convolution's three passes as products of matrices that are never formed.
//
//   gather   y[pixel, column] = sum over (tap, channel) of x[source(pixel, tap), channel] w
//            forward (columns are output channels) and backward to the data (input channels)
//   outer    d_w[out, (tap, channel)] = sum over pixels of d_y[pixel, out] x[source(pixel, tap), channel]
//
// A block computes one tile of the result. It walks the reduction in tiles of 128 bytes of
// each row (32 f32), which cp.async brings into shared memory ahead of their use; zeros stand
// for padding and for what lies past an end. The source position of a row is worked out
// when the tap changes, so the loop holds no division.
//
// Layout of a tile in shared memory: "rows" when the reduction is contiguous in memory (x
// gathered, the forward weight): [row][8 chunks of 16 bytes], chunk c of row r stored at
// c ^ swizzle(r); "columns" when it is not (d_y, the backward weight): [k][row].
//
// Accumulation is f32 in one chain an element, in the order (tap, channel) or (pixel):
//   f32    fused multiply-adds; results are as exact as the CPU's
//   tf32   f32 in memory, operands rounded to tf32 (to nearest, ties away), tensor cores
//   bf16   bf16 in memory, tensor cores
// Which tile shape computes an element does not change its bits; the parts ("lanes") in
// which a reduction may be split are the caller's and are added in order.
#pragma once
#include "common.cuh"
#include <cuda_bf16.h>
#include <type_traits>

using Bf16 = __nv_bfloat16;

/// Bytes of a row of a tile, along the reduction.
constexpr int ROW_BYTES = 128;

/// Elements of a row of a tile, and of 16 bytes.
template <typename T> constexpr int DEPTH = ROW_BYTES / sizeof(T);
template <typename T> constexpr int CHUNK = 16 / sizeof(T);

INLINE unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

/// Keeps the compiler from computing a value again at each use.
INLINE void keep(unsigned &v) { asm volatile("" : "+r"(v)); }
INLINE void keep(int &v) { asm volatile("" : "+r"(v)); }
INLINE void keep(const char *&v) { asm volatile("" : "+l"(v)); }

/// Copies 16 bytes to shared memory where some bit of `inside` is set, else zeros.
INLINE void copy16(unsigned to, const void *from, unsigned inside) {
    asm volatile("{ .reg .pred ignore; setp.eq.u32 ignore, %2, 0;"
                 " cp.async.cg.shared.global [%0], [%1], 16, ignore; }" ::"r"(to),
                 "l"(from), "r"(inside)
                 : "memory");
}

/// Copies 16 bytes to shared memory, but zeros where `value` < `least` or `never`.
INLINE void copy16_from(unsigned to, const void *from, int value, int least, bool never) {
    asm volatile("{ .reg .pred ignore, all; setp.ne.u32 all, %4, 0; setp.lt.or.s32 ignore, %2, %3, all;"
                 " cp.async.cg.shared.global [%0], [%1], 16, ignore; }" ::"r"(to),
                 "l"(from), "r"(value), "r"(least), "r"((unsigned)never)
                 : "memory");
}

/// Copies 4 bytes to shared memory, or zeros.
INLINE void copy4(unsigned to, const void *from, bool inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
                 "r"(inside ? 4 : 0)
                 : "memory");
}

/// One element, at once: for tensors in which 4 bytes straddle pixels.
INLINE void copy_element(unsigned to, const Bf16 *from, bool inside) {
    unsigned short bits = inside ? *(const unsigned short *)from : 0;
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(bits) : "memory");
}
INLINE void copy_element(unsigned to, const float *from, bool inside) { copy4(to, from, inside); }

/// How rows of [k][row] tiles are permuted, in chunks of 16 bytes, so that the lanes that
/// read together meet different banks: not at all for whole rows at once (f32), eight rows
/// k of one chunk (ldmatrix on bf16), or four rows of two chunks (tf32 by words).
enum Order { PLAIN, EIGHT_ROWS, FOUR_ROWS };

/// Where chunk c of row k lies, in a tile whose rows have CHUNKS.
template <Order ORDER, int CHUNKS> __host__ __device__ __forceinline__ constexpr int place(int k, int c) {
    if (ORDER == PLAIN) return c;
    if (ORDER == FOUR_ROWS) return c ^ (k & 3) << 1;
    return c ^ (CHUNKS >= 8 ? k & 7 : k / (8 / CHUNKS) & (CHUNKS - 1));
}

INLINE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING> INLINE void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/// Source position of result i at the k-th tap; -1 where it is padding.
INLINE int source_of(const ConvAxis &a, int i, int k) {
    int at = a.scale * i + a.shift + k * a.shift_step;
    return at >= 0 && at < a.source ? at : -1;
}

/// Where the walk along a gathering reduction stands. Tiles never straddle a tap, nor the
/// border between the two tensors of a concatenation.
struct Walk {
    int tap_y, tap_x;
    /// Channel in x (0) or x2 (1), and which.
    int channel, tensor;

    template <int STEP> INLINE void start(const ConvGather &p, int tile) {
        int first = (p.reduced - p.x2_channels + STEP - 1) / STEP;
        int per_tap = first + (p.x2_channels + STEP - 1) / STEP;
        int tap = tile / per_tap, rest = tile % per_tap;
        tap_y = tap / p.along.taps;
        tap_x = tap % p.along.taps;
        tensor = rest >= first;
        channel = (rest - (tensor ? first : 0)) * STEP;
    }

    INLINE int length(const ConvGather &p) const {
        return tensor ? p.x2_channels : p.reduced - p.x2_channels;
    }

    /// Goes on to the next tensor or tap.
    INLINE void next(const ConvGather &p) {
        channel = 0;
        if (tensor == 0 && p.x2_channels > 0) {
            tensor = 1;
            return;
        }
        tensor = 0;
        if (++tap_x == p.along.taps) {
            tap_x = 0;
            tap_y++;
        }
    }

    /// Row of the weight's [kernel_taps].
    INLINE int tap(const ConvGather &p) const {
        return (p.down.tap + tap_y * p.down.tap_step) * p.kernel_width + p.along.tap +
               tap_x * p.along.tap_step;
    }
};

/// Where chunk threadIdx.x % 8 of a thread's i-th row lies in a [row][k] tile.
template <int THREADS, int SWIZZLE> INLINE unsigned row_slot(unsigned tile, int i) {
    int row = threadIdx.x / 8 + i * (THREADS / 8);
    return tile + row * ROW_BYTES + ((threadIdx.x % 8) ^ (row >> SWIZZLE & 7)) * 16;
}

/// The same from the slot of row 0: rows lie a multiple of eight permutations apart, or
/// (f32, eight rows a step) their permutation is that of the row before with two bits changed.
template <int THREADS, int SWIZZLE> INLINE unsigned next_slot(unsigned first, int i) {
    constexpr int STEP = THREADS / 8;
    return (first ^ (i * STEP >> SWIZZLE & 7) * 16) + i * STEP * ROW_BYTES;
}

/// Rows of gathered x, the left operand of `gather`: 16 bytes never straddle a pixel.
/// Each thread has one chunk of every STEP-th row.
template <typename T, int ROWS, int THREADS, int SWIZZLE> struct GatheredRows {
    static constexpr int STEP = THREADS / 8, PASSES = ROWS / STEP;
    static_assert(ROWS % STEP == 0 && PASSES <= 32, "whole passes");
    /// First pixel of the row's image, and the position it reads at tap (0, 0) as two
    /// signed halves; far outside for a row that does not exist.
    int image[PASSES], corner[PASSES];
    /// Pixel of x that the current tap reads, and a bit a row: whether it is inside.
    int pixel[PASSES];
    unsigned inside;
    const char *from;
    int pitch;
    /// Of the first row, in a tile.
    unsigned slot;

    INLINE void start(const ConvGather &p, int first_row) {
        slot = row_slot<THREADS, SWIZZLE>(0, 0);
        keep(slot);
        int area = p.down.count * p.along.count;
        int size = (p.down.source >> p.enlarge) * (p.along.source >> p.enlarge);
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            int row = first_row + threadIdx.x / 8 + i * STEP, at = row % area;
            int y = p.down.scale * (at / p.along.count) + p.down.shift;
            int x = p.along.scale * (at % p.along.count) + p.along.shift;
            image[i] = row / area * size;
            corner[i] = row < p.pixels ? y << 16 | (x & 0xffff) : 0x80008000;
        }
    }

    /// Turns to a tap and tensor, from the walk's channel on.
    INLINE void find(const ConvGather &p, const Walk &walk, int group) {
        int channels = walk.tensor ? p.x2_channels : p.x_channels;
        pitch = channels * (int)sizeof(T);
        from = (const char *)(walk.tensor ? p.x2 : p.x) +
               (group * p.reduced + walk.channel + threadIdx.x % 8 * CHUNK<T>) * sizeof(T);
        int width = p.along.source >> p.enlarge;
        inside = 0;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            int y = (corner[i] >> 16) + walk.tap_y * p.down.shift_step;
            int x = (short)corner[i] + walk.tap_x * p.along.shift_step;
            bool is_inside = (unsigned)y < (unsigned)p.down.source && (unsigned)x < (unsigned)p.along.source;
            pixel[i] = is_inside ? image[i] + (y >> p.enlarge) * width + (x >> p.enlarge) : 0;
            inside |= is_inside ? 1u << i : 0u;
        }
    }

    /// The next tile, of which `terms` channels are left.
    INLINE void fetch(unsigned tile, int terms) {
        unsigned now = threadIdx.x % 8 * CHUNK<T> < terms ? inside : 0u;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            copy16(next_slot<THREADS, SWIZZLE>(tile + slot, i), from + (Len)pixel[i] * pitch, now & 1u << i);
        }
        from += ROW_BYTES;
    }
};

/// Rows of the forward weight: the right operand of `gather` where columns are outputs.
template <typename T, int ROWS, int THREADS, int SWIZZLE> struct WeightRows {
    static constexpr int STEP = THREADS / 8, PASSES = (ROWS + STEP - 1) / STEP;
    unsigned inside, slot;
    const char *from;
    int pitch;

    INLINE void start(const ConvGather &p, int first) {
        slot = row_slot<THREADS, SWIZZLE>(0, 0);
        keep(slot);
        pitch = p.kernel_taps * p.reduced * (int)sizeof(T);
        inside = 0;
#pragma unroll
        for (int i = 0; i < PASSES; i++)
            inside |= first + (int)threadIdx.x / 8 + i * STEP < p.columns ? 1u << i : 0u;
    }

    INLINE void find(const ConvGather &p, const Walk &walk, int group, int first) {
        int k = walk.tap(p) * p.reduced + walk.channel + (walk.tensor ? p.x_channels : 0);
        from = (const char *)p.weight + (k + threadIdx.x % 8 * CHUNK<T>) * sizeof(T) +
               (Len)(group * p.columns + first + threadIdx.x / 8) * pitch;
    }

    INLINE void fetch(unsigned tile, int terms) {
        unsigned now = threadIdx.x % 8 * CHUNK<T> < terms ? inside : 0u;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            if (ROWS % STEP != 0 && threadIdx.x / 8 + i * STEP >= ROWS) break;
            copy16(next_slot<THREADS, SWIZZLE>(tile + slot, i), from + (Len)(i * STEP) * pitch, now & 1u << i);
        }
        from += ROW_BYTES;
    }
};

/// The weight with the reduction across its rows: the right operand of `gather` where
/// columns are inputs. [k][COLUMNS].
template <typename T, int COLUMNS, int THREADS, Order ORDER> struct WeightColumns {
    static constexpr int CHUNKS = COLUMNS / CHUNK<T>, STEP = THREADS / CHUNKS;
    static_assert(THREADS % CHUNKS == 0 && DEPTH<T> % STEP == 0, "whole passes");
    bool exists;
    unsigned slot;
    const char *from;
    int pitch;

    INLINE void start(const ConvGather &p, int first) {
        int row = threadIdx.x / CHUNKS;
        slot = row * (COLUMNS * (int)sizeof(T)) + place<ORDER, CHUNKS>(row, threadIdx.x % CHUNKS) * 16;
        keep(slot);
        pitch = p.kernel_taps * p.columns * (int)sizeof(T);
        exists = first + (int)threadIdx.x % CHUNKS * CHUNK<T> < p.columns;
    }

    INLINE void find(const ConvGather &p, const Walk &walk, int group, int first) {
        int row = group * p.reduced + walk.channel + threadIdx.x / CHUNKS;
        from = (const char *)p.weight + (Len)row * pitch +
               (walk.tap(p) * p.columns + first + threadIdx.x % CHUNKS * CHUNK<T>) * sizeof(T);
    }

    INLINE void fetch(unsigned tile, int terms) {
        int left = exists ? terms - (int)threadIdx.x / CHUNKS : 0;
#pragma unroll
        for (int i = 0; i < DEPTH<T> / STEP; i++) {
            // Permutations are linear: that of a sum without carries is the sum of theirs.
            unsigned at = (tile + slot ^ place<ORDER, CHUNKS>(i * STEP, 0) * 16) + i * STEP * (COLUMNS * (int)sizeof(T));
            copy16(at, from + (Len)(i * STEP) * pitch, i * STEP < left);
        }
        from += (Len)DEPTH<T> * pitch;
    }
};

/// Both operands element by element, for any number of channels; k counts (tap, channel).
template <class Tile, bool FORWARD> struct Scattered {
    using T = typename Tile::T;
    static constexpr int STEP = Tile::THREADS / 8, PASSES = Tile::BM / STEP;
    int image[PASSES], y[PASSES], x[PASSES];

    INLINE void start(const ConvGather &p, int first_row) {
        int area = p.down.count * p.along.count;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            int row = first_row + threadIdx.x / 8 + i * STEP;
            image[i] = row < p.pixels ? row / area : -1;
            y[i] = row % area / p.along.count;
            x[i] = row % p.along.count;
        }
    }

    INLINE void fetch(const ConvGather &p, int k0, int group, int first, unsigned left, unsigned right) const {
        int height = p.down.source >> p.enlarge, width = p.along.source >> p.enlarge;
        int total = p.down.taps * p.along.taps * p.reduced;
#pragma unroll 1
        for (int e = 0; e < CHUNK<T>; e++) {
            int k = k0 + threadIdx.x % 8 * CHUNK<T> + e;
            int tap = k / p.reduced, channel = group * p.reduced + k % p.reduced;
            bool second = channel >= p.x_channels;
            int pitch = second ? p.x2_channels : p.x_channels;
            const T *from = (const T *)(second ? p.x2 : p.x) + (second ? channel - p.x_channels : channel);
#pragma unroll
            for (int i = 0; i < PASSES; i++) {
                int sy = source_of(p.down, y[i], tap / p.along.taps);
                int sx = source_of(p.along, x[i], tap % p.along.taps);
                bool inside = k < total && sy >= 0 && sx >= 0 && image[i] >= 0;
                Len at = (image[i] * height + (sy >> p.enlarge)) * width + (sx >> p.enlarge);
                unsigned slot = row_slot<Tile::THREADS, Tile::SWIZZLE_A>(left, i) + e * sizeof(T);
                copy_element(slot, inside ? from + at * pitch : (const T *)p.x, inside);
            }
        }
        const T *weight = (const T *)p.weight;
        for (int i = threadIdx.x; i < Tile::BN * DEPTH<T>; i += Tile::THREADS) {
            // Neighbouring threads read neighbouring elements.
            int at_k = FORWARD ? i % DEPTH<T> : i / Tile::BN, row = FORWARD ? i / DEPTH<T> : i % Tile::BN;
            int k = k0 + at_k, tap = k / p.reduced, channel = k % p.reduced;
            Walk walk = {tap / p.along.taps, tap % p.along.taps, 0, 0};
            bool inside = k < total && first + row < p.columns;
            int out = group * (FORWARD ? p.columns : p.reduced) + (FORWARD ? first + row : channel);
            int in = FORWARD ? channel : first + row;
            Len at = ((Len)out * p.kernel_taps + walk.tap(p)) * (FORWARD ? p.reduced : p.columns) + in;
            int chunk = (FORWARD ? at_k : row) / CHUNK<T>, element = (FORWARD ? at_k : row) % CHUNK<T>;
            unsigned slot = FORWARD ? row * ROW_BYTES + (chunk ^ (row >> Tile::SWIZZLE_B & 7)) * 16
                                    : at_k * (Tile::BN * (int)sizeof(T)) +
                                          place<Tile::ORDER, Tile::BN / CHUNK<T>>(at_k, chunk) * 16;
            copy_element(right + slot + element * sizeof(T), weight + (inside ? at : 0), inside);
        }
    }
};

/// A tile of BM x BN results, of which a thread computes TM x TN with fused multiply-adds:
/// rows 4 t .. 4 t + 3 and again one tile half further, so that four lie side by side.
template <int BM_, int BN_, int TM_, int TN_> struct Fused {
    using T = float;
    static constexpr int BM = BM_, BN = BN_, TM = TM_, TN = TN_;
    static constexpr int ALONG = BN / TN, THREADS = BM / TM * ALONG;
    /// Lanes that read at once own rows 4 apart, or 1.
    static constexpr int SWIZZLE_A = TM >= 4 ? 2 : 0, SWIZZLE_B = TN >= 4 ? 2 : 0;
    static constexpr Order ORDER = PLAIN, RESULT_ORDER = PLAIN;

    float sums[TM][TN];
    /// Of row threadIdx.x of the left operand.
    float bias;

    INLINE void clear() {
        bias = 0.0f;
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) sums[i][j] = 0.0f;
    }

    /// Row of the tile that this thread's i-th row is.
    static INLINE int row(int i) {
        int t = threadIdx.x / ALONG;
        return TM < 4 ? t * TM + i : 4 * t + i % 4 + i / 4 * (BM / TM * 4);
    }
    static INLINE int column(int j) {
        int t = threadIdx.x % ALONG;
        return TN < 4 ? t * TN + j : 4 * t + j % 4 + j / 4 * (ALONG * 4);
    }

    /// Four values along k of each of the thread's rows.
    template <bool ROWS, int COUNT, int WIDTH, int SWIZZLE, typename Index>
    static INLINE void load(const float *tile, int quad, float (&to)[COUNT][4], Index index) {
        if (ROWS) {
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                int r = index(i);
                float4 v = *(const float4 *)(tile + r * DEPTH<float> + (quad ^ (r >> SWIZZLE & 7)) * 4);
                to[i][0] = v.x, to[i][1] = v.y, to[i][2] = v.z, to[i][3] = v.w;
            }
        } else {
            static_assert(ROWS || COUNT % 4 == 0, "four rows side by side");
#pragma unroll
            for (int k = 0; k < 4; k++) {
#pragma unroll
                for (int i = 0; i < COUNT; i += 4) {
                    float4 v = *(const float4 *)(tile + (quad * 4 + k) * WIDTH + index(i));
                    to[i][k] = v.x, to[i + 1][k] = v.y, to[i + 2][k] = v.z, to[i + 3][k] = v.w;
                }
            }
        }
    }

    struct At {};
    template <bool A_ROWS, bool B_ROWS> static INLINE At start() { return {}; }

    /// Adds the products of `terms` terms. `with_bias` adds up the left operand as well.
    template <bool A_ROWS, bool B_ROWS>
    INLINE void multiply(At, const unsigned char *stage, int terms, bool with_bias) {
        const float *a = (const float *)stage, *b = a + BM * DEPTH<float>;
#pragma unroll 1
        for (int quad = 0; quad < (terms + 3) / 4; quad++) {
            float left[TM][4], right[TN][4];
            load<A_ROWS, TM, BM, SWIZZLE_A>(a, quad, left, row);
            load<B_ROWS, TN, BN, SWIZZLE_B>(b, quad, right, column);
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int i = 0; i < TM; i++)
#pragma unroll
                    for (int j = 0; j < TN; j++) sums[i][j] = fmaf(left[i][k], right[j][k], sums[i][j]);
        }
        if (!A_ROWS && with_bias && threadIdx.x < BM) {
            for (int k = 0; k < terms; k++) bias += a[k * BM + threadIdx.x];
        }
    }

    template <typename Put> INLINE void for_bias(Put put) const {
        if (threadIdx.x < BM) put(threadIdx.x, bias);
    }

    /// Writes the tile to shared memory, row by row.
    INLINE void lay_out(float *to) const {
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j += 4)
                *(float4 *)(to + row(i) * BN + column(j)) =
                    make_float4(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]);
    }
};

INLINE void load_matrices(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

INLINE void load_matrices_transposed(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

INLINE unsigned load_word(unsigned at) {
    unsigned v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}

/// Both at once, which the compiler would take apart.
INLINE void store_pair(unsigned at, float a, float b) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(a), "f"(b) : "memory");
}

INLINE unsigned rounded_to_tf32(unsigned v) {
    unsigned r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(v)));
    return r;
}

INLINE void mma(Bf16, float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

INLINE void mma(float, float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A tile of BM x BN results on tensor cores (bf16, or f32 rounded to tf32), divided among
/// DOWN x ALONG warps. A warp's step is 32 bytes of k: one mma deep.
template <typename T_, int BM_, int BN_, int DOWN, int ALONG> struct Tensor {
    using T = T_;
    static constexpr int BM = BM_, BN = BN_, THREADS = 32 * DOWN * ALONG;
    static constexpr int WM = BM / DOWN, WN = BN / ALONG, ROWS = WM / 16, COLUMNS = WN / 8;
    static constexpr int SWIZZLE_A = 0, SWIZZLE_B = 0, STEPS = 4;
    static constexpr bool WORDS = sizeof(T) == 4;
    static constexpr Order ORDER = WORDS ? FOUR_ROWS : EIGHT_ROWS, RESULT_ORDER = FOUR_ROWS;
    static_assert(WM % 16 == 0 && WN % 16 == 0, "whole fragments");

    float sums[ROWS][COLUMNS][4];
    /// Sums of the left operand's rows, in every column.
    float bias[ROWS][4];

    INLINE void clear() {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                bias[i][e] = 0.0f;
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) sums[i][j][e] = 0.0f;
            }
    }

    static INLINE int warp_row() { return threadIdx.x / 32 / ALONG * WM; }
    static INLINE int warp_column() { return threadIdx.x / 32 % ALONG * WN; }

    /// 16 x (32 bytes) at row `first` of a [row][k] tile. HALVES_FIRST orders the four
    /// matrices (rows, k): for A, rows go first; for B, k does.
    template <bool IS_A> static INLINE unsigned rows_address(unsigned tile, int first) {
        int lane = threadIdx.x % 32;
        int row = first + lane % 8 + (IS_A ? lane / 8 % 2 : lane / 16) * 8;
        int half = IS_A ? lane / 16 : lane / 8 % 2;
        return tile + row * ROW_BYTES + (half ^ lane % 8) * 16;
    }

    /// The same for a [k][row] tile of bf16, read transposed.
    template <bool IS_A, int WIDTH> static INLINE unsigned columns_address(unsigned tile, int first) {
        constexpr int CHUNKS = WIDTH / CHUNK<T>;
        int lane = threadIdx.x % 32;
        int k = lane % 8 + (IS_A ? lane / 16 : lane / 8 % 2) * 8;
        int half = IS_A ? lane / 8 % 2 : lane / 16;
        return tile + k * (WIDTH * sizeof(T)) + place<ORDER, CHUNKS>(k, first / CHUNK<T> + half) * 16;
    }

    /// The first word of a [k][row] tile of f32 that this lane reads.
    template <int WIDTH> static INLINE unsigned words_address(unsigned tile, int first) {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        return tile + t * (WIDTH * 4) + place<ORDER, WIDTH / 4>(t, first / 4 + g / 4) * 16 + g % 4 * 4;
    }

    /// Where this lane's first fragments lie in a stage.
    struct At {
        unsigned a, b;
    };

    template <bool A_ROWS, bool B_ROWS> static INLINE At start() {
        At at;
        at.a = A_ROWS  ? rows_address<true>(0, warp_row())
               : WORDS ? words_address<BM>(0, warp_row())
                       : columns_address<true, BM>(0, warp_row());
        at.b = B_ROWS  ? rows_address<false>(BM * ROW_BYTES, warp_column())
               : WORDS ? words_address<BN>(BM * ROW_BYTES, warp_column())
                       : columns_address<false, BN>(BM * ROW_BYTES, warp_column());
        keep(at.a);
        keep(at.b);
        return at;
    }

    template <bool A_ROWS, bool B_ROWS>
    INLINE void multiply(const At &at, const unsigned char *stage, int, bool with_bias) {
        unsigned a_at = shared_address(stage) + at.a, b_at = shared_address(stage) + at.b;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            unsigned a[ROWS][4], b[COLUMNS / 2][4];
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                if (A_ROWS) {
                    load_matrices(a[i], (a_at ^ step * 32) + i * 16 * ROW_BYTES);
                } else if (WORDS) {
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        a[i][e] = load_word((a_at ^ (4 * i + e % 2 * 2) * 16) + (step * 8 + e / 2 * 4) * (BM * 4));
                } else {
                    load_matrices_transposed(a[i], (a_at ^ i * 32) + step * 16 * (BM * 2));
                }
                if (WORDS) {
#pragma unroll
                    for (int e = 0; e < 4; e++) a[i][e] = rounded_to_tf32(a[i][e]);
                }
            }
#pragma unroll
            for (int j = 0; j < COLUMNS / 2; j++) {
                if (B_ROWS) {
                    load_matrices(b[j], (b_at ^ step * 32) + j * 16 * ROW_BYTES);
                } else if (WORDS) {
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        b[j][e] = load_word((b_at ^ (4 * j + e / 2 * 2) * 16) + (step * 8 + e % 2 * 4) * (BN * 4));
                } else {
                    load_matrices_transposed(b[j], (b_at ^ j * 32) + step * 16 * (BN * 2));
                }
                if (WORDS) {
#pragma unroll
                    for (int e = 0; e < 4; e++) b[j][e] = rounded_to_tf32(b[j][e]);
                }
            }
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) mma(T(), sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            if (!A_ROWS && with_bias) {
                unsigned one = WORDS ? 0x3f800000u : 0x3f803f80u;
#pragma unroll
                for (int i = 0; i < ROWS; i++) mma(T(), bias[i], a[i], one, one);
            }
        }
    }

    template <typename Put> INLINE void for_bias(Put put) const {
        int lane = threadIdx.x % 32;
        if (lane % 4 != 0 || warp_column() != 0) return;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            put(warp_row() + i * 16 + lane / 4, bias[i][0]);
            put(warp_row() + i * 16 + lane / 4 + 8, bias[i][2]);
        }
    }

    INLINE void lay_out(float *to) const {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int row = warp_row() + i * 16 + half * 8 + g;
                    int chunk = warp_column() / 4 + j * 2 + t / 2;
                    float *at = to + row * BN + place<RESULT_ORDER, BN / 4>(row, chunk) * 4 + t % 2 * 2;
                    store_pair(shared_address(at), sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
                }
    }
};

template <class Tile> constexpr int STAGE_BYTES = (Tile::BM + Tile::BN) * ROW_BYTES;

/// Neighbouring results: as many as 16 bytes of T hold.
template <typename T> struct Values {
    static constexpr int COUNT = CHUNK<T>;
    float v[COUNT];

    INLINE void add(const float *p, int count) {
        if (!p) return;
#pragma unroll
        for (int k = 0; k < COUNT; k += GROUP) {
            Group g = load(p + k, count - k);
#pragma unroll
            for (int e = 0; e < GROUP; e++) v[k + e] += g[e];
        }
    }
    INLINE void add(const Bf16 *p, int count) {
        if (!p) return;
        if (count == COUNT && is_aligned(p)) {
            uint4 bits = *(const uint4 *)p;
            const unsigned word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
            for (int k = 0; k < COUNT; k++) {
                unsigned w = word[k / 2];
                v[k] += __uint_as_float(k % 2 ? w & 0xffff0000u : w << 16);
            }
        } else {
#pragma unroll
            for (int k = 0; k < COUNT; k++)
                if (k < count) v[k] += __bfloat162float(p[k]);
        }
    }
    INLINE void write(float *p, int count, bool add) const {
#pragma unroll
        for (int k = 0; k < COUNT; k += GROUP)
            store(p + k, Group{v[k], v[k + 1], v[k + 2], v[k + 3]}, min(count - k, GROUP), add);
    }
    INLINE void write(Bf16 *p, int count, bool add) {
        if (add) this->add((const Bf16 *)p, count);
        if (count == COUNT && is_aligned(p)) {
            unsigned word[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * k], v[2 * k + 1]);
                word[k] = *(const unsigned *)&pair;
            }
            *(uint4 *)p = make_uint4(word[0], word[1], word[2], word[3]);
        } else {
#pragma unroll
            for (int k = 0; k < COUNT; k++)
                if (k < count) p[k] = __float2bfloat16_rn(v[k]);
        }
    }
};

/// Gives `put(row, column, values)` the results of a tile, 16 bytes a thread side by side,
/// by way of shared memory, which must be free. Columns past the last do not occur.
template <class Tile, typename T, typename Put>
INLINE void give(const Tile &tile, float *shared, int rows, int columns, Put put) {
    constexpr int ALONG = Tile::BN / CHUNK<T> > 0 ? Tile::BN / CHUNK<T> : 1;
    __syncthreads();
    tile.lay_out(shared);
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < Tile::BM * ALONG; i += Tile::THREADS) {
        int row = i / ALONG, column = i % ALONG * CHUNK<T>;
        if (row >= rows || column >= columns) continue;
        // Of eight values every second group of four threads reads the upper half first:
        // eight threads then meet all banks.
        constexpr int HALVES = CHUNK<T> / 4;
        int swap = HALVES == 2 ? threadIdx.x / 4 % 2 : 0;
        float4 f[HALVES];
#pragma unroll
        for (int k = 0; k < HALVES; k++) {
            int at = place<Tile::RESULT_ORDER, Tile::BN / 4>(row, column / 4 + (k ^ swap));
            f[k] = *(const float4 *)(shared + row * Tile::BN + at * 4);
        }
        Values<T> values;
#pragma unroll
        for (int k = 0; k < HALVES; k++) {
            float4 v = swap ? f[HALVES - 1 - k] : f[k];
            values.v[4 * k] = v.x, values.v[4 * k + 1] = v.y, values.v[4 * k + 2] = v.z, values.v[4 * k + 3] = v.w;
        }
        put(row, column, values);
    }
}

/// Tiles of the reduction in shared memory: one is multiplied while the next arrives.
constexpr int STAGES = 2;

/// One tile of a gathering pass. Grid: row tiles, column tiles, groups x lanes.
template <class Tile, bool FORWARD, bool ALIGNED> INLINE void gather(const ConvGather &p) {
    using T = typename Tile::T;
    constexpr int STEP = DEPTH<T>;
    extern __shared__ __align__(128) unsigned char shared[];
    int first_row = blockIdx.x * Tile::BM, first_column = blockIdx.y * Tile::BN;
    int group = blockIdx.z % p.groups, lane = blockIdx.z / p.groups;
    int from = (int)((Len)p.tiles * lane / p.lanes), to = (int)((Len)p.tiles * (lane + 1) / p.lanes);

    Tile tile;
    tile.clear();
    auto at = Tile::template start<true, FORWARD>();
    int stage = 0, terms = 0;
    // Tile t is on its way into `stage` while t - 1 is multiplied; the last turn only
    // multiplies.
    auto turn = [&](int t, int arriving, auto fetch) {
        await_copies<0>();
        __syncthreads();
        unsigned left = shared_address(shared) + stage * STAGE_BYTES<Tile>;
        if (t < to) fetch(left, left + Tile::BM * ROW_BYTES);
        commit_copies();
        stage ^= 1;
        if (t > from) {
            tile.template multiply<true, FORWARD>(at, shared + stage * STAGE_BYTES<Tile>, terms, false);
        }
        terms = arriving;
    };
    if constexpr (ALIGNED) {
        GatheredRows<T, Tile::BM, Tile::THREADS, Tile::SWIZZLE_A> rows;
        std::conditional_t<FORWARD, WeightRows<T, Tile::BN, Tile::THREADS, Tile::SWIZZLE_B>,
                           WeightColumns<T, Tile::BN, Tile::THREADS, Tile::ORDER>>
            weight;
        rows.start(p, first_row);
        weight.start(p, first_column);
        Walk walk;
        walk.start<STEP>(p, from);
#pragma unroll 1
        for (int t = from; t <= to;) {
            rows.find(p, walk, group);
            weight.find(p, walk, group, first_column);
            int left = walk.length(p) - walk.channel;
            int end = t < to ? min(to, t + (left + STEP - 1) / STEP) : t + 1;
#pragma unroll 1
            for (; t < end; t++) {
                turn(t, min(left, STEP), [&](unsigned a, unsigned b) {
                    rows.fetch(a, left);
                    weight.fetch(b, left);
                });
                left -= STEP;
            }
            walk.next(p);
        }
    } else {
        Scattered<Tile, FORWARD> both;
        both.start(p, first_row);
        int total = p.down.taps * p.along.taps * p.reduced;
#pragma unroll 1
        for (int t = from; t <= to; t++) {
            turn(t, min(total - t * STEP, STEP), [&](unsigned a, unsigned b) {
                both.fetch(p, t * STEP, group, first_column, a, b);
            });
        }
    }

    int channels = p.groups * p.columns, area = p.down.count * p.along.count;
    bool dense = p.down.step == 1 && p.along.step == 1;
    give<Tile, T>(tile, (float *)shared, p.pixels - first_row, p.columns - first_column,
                  [&](int row, int column, Values<T> &values) {
        int count = min(p.columns - first_column - column, CHUNK<T>);
        int channel = group * p.columns + first_column + column;
        Len pixel = first_row + row;
        int image = 0;
        if (!dense || p.per_image) {
            int at = (int)pixel % area;
            image = (int)pixel / area;
            int y = p.down.first + p.down.step * (at / p.along.count);
            int x = p.along.first + p.along.step * (at % p.along.count);
            pixel = ((Len)image * p.down.length + y) * p.along.length + x;
        }
        Len at = pixel * channels + channel;
        if (p.lanes > 1) {
            Len size = (Len)p.images * p.down.length * p.along.length * channels;
            values.write(p.partial + lane * size + at, count, false);
            return;
        }
        if (p.bias) values.add(p.bias + channel, count);
        if (p.per_image) values.add((const T *)p.per_image + (Len)image * channels + channel, count);
        if (p.residual) values.add((const T *)p.residual + at, count);
        values.write((T *)p.y + at, count, p.add);
    });
}

/// A position among the pixels of a pass, which moves on by a fixed number.
struct PixelStep {
    int images, rows, columns;
    INLINE void start(const ConvOuter &p, int pixels) {
        columns = pixels % p.along.count;
        rows = pixels / p.along.count % p.down.count;
        images = pixels / (p.along.count * p.down.count);
    }
};

struct PixelWalk {
    int image, y, x;
    INLINE void start(const ConvOuter &p, int pixel) {
        image = pixel / (p.down.count * p.along.count);
        y = pixel / p.along.count % p.down.count;
        x = pixel % p.along.count;
    }
    INLINE void move(const ConvOuter &p, const PixelStep &s) {
        x += s.columns;
        int down = x >= p.along.count;
        x -= down ? p.along.count : 0;
        y += s.rows + down;
        int next = y >= p.down.count;
        y -= next ? p.down.count : 0;
        image += s.images + next;
    }
    /// Pixel of x that this one reads by the tap `down` and `along` the first one; -1 where it
    /// is padding or does not exist.
    INLINE int source(const ConvOuter &p, int down, int along) const {
        unsigned sy = p.down.scale * y + p.down.shift + down, sx = p.along.scale * x + p.along.shift + along;
        bool inside = sy < (unsigned)p.down.source && sx < (unsigned)p.along.source && image < p.images;
        int height = p.down.source >> p.enlarge, width = p.along.source >> p.enlarge;
        int pixel = (image * height + (int)(sy >> p.enlarge)) * width + (int)(sx >> p.enlarge);
        return inside ? pixel : -1;
    }
};

/// Which chunk of which rows of an [pixel of the tile][COLUMNS] tile a thread copies.
template <class Tile, int COLUMNS> struct Share {
    using T = typename Tile::T;
    static constexpr int CHUNKS = COLUMNS / CHUNK<T>, STEP = Tile::THREADS / CHUNKS, PASSES = DEPTH<T> / STEP;
    static constexpr int PITCH = COLUMNS * (int)sizeof(T);
    static_assert(Tile::THREADS % CHUNKS == 0, "whole rows");
    static INLINE int chunk() { return threadIdx.x % CHUNKS; }
    static INLINE int row() { return threadIdx.x / CHUNKS; }
    static INLINE unsigned slot(int row) { return row * PITCH + place<Tile::ORDER, CHUNKS>(row, chunk()) * 16; }
};

/// The operands of `outer` where 16 bytes never straddle a pixel. Which pixel of x a pixel
/// of the tile reads is worked out once for all channels of a tap, a tile ahead, by a thread
/// for each, and left in a table.
template <class Tile> struct OuterColumns {
    using T = typename Tile::T;
    using A = Share<Tile, Tile::BM>;
    using B = Share<Tile, Tile::BN>;
    static constexpr int PIXELS = DEPTH<T>, MOST_TAPS = Tile::BN / CHUNK<T>;
    // Rows of a thread lie whole permutations apart, and their sources side by side.
    static_assert(place<Tile::ORDER, A::CHUNKS>(A::STEP, 0) == 0 && place<Tile::ORDER, B::CHUNKS>(B::STEP, 0) == 0);
    static_assert(A::PASSES * A::STEP == PIXELS && B::PASSES * B::STEP == PIXELS && B::PASSES % 4 == 0 &&
                  Tile::THREADS % PIXELS == 0);
    const char *d_y, *x;
    int d_y_pitch, x_pitch;
    /// Pixels from this thread's first row on.
    int left, pixels;
    unsigned d_y_slot, x_slot;
    bool no_row, no_column;
    PixelWalk walk;
    PixelStep step;
    /// For each tap that the block's columns belong to how far it lies from the first (two
    /// halves), then the sources of two tiles, [taps][PIXELS] in the order of their readers.
    int *steps;
    int taps, from, to, half;

    INLINE void start(const ConvOuter &p, int group, int lane, int first_row, int first_column, int *table) {
        int row = first_row + A::chunk() * CHUNK<T>, channels = p.groups * p.c_out;
        no_row = row >= p.c_out;
        d_y_pitch = channels * (int)sizeof(T);
        d_y = (const char *)p.d_y + (group * p.c_out + (no_row ? 0 : row)) * sizeof(T) +
              (Len)(lane * PIXELS + A::row()) * d_y_pitch;
        pixels = p.lanes * PIXELS;
        left = p.pixels - lane * PIXELS - A::row();
        d_y_slot = A::slot(A::row());
        x_slot = Tile::BM * ROW_BYTES + B::slot(B::row());
        keep(d_y_slot);
        keep(x_slot);

        int all = p.kernel_taps * p.c_in, column = first_column + B::chunk() * CHUNK<T>;
        no_column = column >= all;
        int first_tap = first_column / p.c_in, tap = no_column ? first_tap : column / p.c_in;
        int channel = group * p.c_in + (no_column ? 0 : column % p.c_in);
        bool second = channel >= p.x_channels;
        x_pitch = (second ? p.x2_channels : p.x_channels) * (int)sizeof(T);
        x = (const char *)(second ? p.x2 : p.x) + (second ? channel - p.x_channels : channel) * sizeof(T);
        keep(x);

        taps = (min(first_column + Tile::BN, all) - 1) / p.c_in - first_tap + 1;
        int entry = threadIdx.x % PIXELS;
        walk.start(p, lane * PIXELS + entry / B::PASSES + entry % B::PASSES * B::STEP);
        step.start(p, pixels);
        steps = table;
        from = MOST_TAPS + (tap - first_tap) * PIXELS + B::row() * B::PASSES;
        to = MOST_TAPS + entry;
        half = 0;
        for (int i = threadIdx.x; i < taps; i += Tile::THREADS) {
            int down = (first_tap + i) / p.kernel_width * p.down.shift_step;
            int along = (first_tap + i) % p.kernel_width * p.along.shift_step;
            steps[i] = down << 16 | (along & 0xffff);
        }
        __syncthreads();
    }

    /// Works out the sources of the next tile.
    INLINE void look_ahead(const ConvOuter &p) {
#pragma unroll 1
        for (int i = threadIdx.x / PIXELS; i < taps; i += Tile::THREADS / PIXELS)
            steps[half + to + i * PIXELS] = walk.source(p, steps[i] >> 16, (short)steps[i]);
        walk.move(p, step);
        half = taps * PIXELS - half;
    }

    /// Copies the tile whose sources were worked out before those last worked out.
    INLINE void fetch(unsigned tile) {
        int pixel[B::PASSES];
#pragma unroll
        for (int i = 0; i < B::PASSES; i += 4) {
            int4 four = *(const int4 *)(steps + half + from + i);
            pixel[i] = four.x, pixel[i + 1] = four.y, pixel[i + 2] = four.z, pixel[i + 3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < A::PASSES; i++)
            copy16_from(tile + d_y_slot + i * A::STEP * A::PITCH, d_y + (Len)(i * A::STEP) * d_y_pitch, left,
                        i * A::STEP + 1, no_row);
        d_y += (Len)pixels * d_y_pitch;
        left -= pixels;
        // Seen anew in every turn, else the compiler widens it once and multiplies 64 bits.
        int pitch = x_pitch;
        keep(pitch);
#pragma unroll
        for (int i = 0; i < B::PASSES; i++)
            copy16_from(tile + x_slot + i * B::STEP * B::PITCH, x + (Len)pixel[i] * pitch, pixel[i], 0, no_column);
    }
};

/// The same element by element, for any number of channels.
template <class Tile> struct OuterElements {
    using T = typename Tile::T;
    using A = Share<Tile, Tile::BM>;
    using B = Share<Tile, Tile::BN>;
    static constexpr int PIXELS = DEPTH<T>, EACH = CHUNK<T>;
    int tap_y[EACH], tap_x[EACH], pitch[EACH];
    const T *x[EACH];
    const T *d_y;
    int rows_left, row_channel;
    PixelWalk walk;
    PixelStep small, jump;
    int tile_index;

    INLINE void start(const ConvOuter &p, int group, int lane, int first_row, int first_column) {
        int all = p.kernel_taps * p.c_in;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int column = first_column + B::chunk() * EACH + e;
            bool exists = column < all;
            int tap = exists ? column / p.c_in : 0;
            int channel = group * p.c_in + (exists ? column % p.c_in : 0);
            tap_y[e] = exists ? tap / p.kernel_width : -1;
            tap_x[e] = tap % p.kernel_width;
            bool second = channel >= p.x_channels;
            pitch[e] = second ? p.x2_channels : p.x_channels;
            x[e] = (const T *)(second ? p.x2 : p.x) + (second ? channel - p.x_channels : channel);
        }
        d_y = (const T *)p.d_y;
        rows_left = p.c_out - first_row - A::chunk() * EACH;
        row_channel = rows_left > 0 ? group * p.c_out + first_row + A::chunk() * EACH : 0;
        small.start(p, B::STEP);
        jump.start(p, (p.lanes - 1) * PIXELS);
        walk.start(p, lane * PIXELS + B::row());
        tile_index = lane;
    }

    INLINE void fetch(const ConvOuter &p, unsigned tile) {
#pragma unroll 1
        for (int r = A::row(); r < PIXELS; r += A::STEP) {
            int pixel = tile_index * PIXELS + r;
            const T *from = d_y + (Len)pixel * (p.groups * p.c_out) + row_channel;
#pragma unroll 1
            for (int e = 0; e < EACH; e++) {
                bool inside = pixel < p.pixels && rows_left > e;
                copy_element(tile + A::slot(r) + e * sizeof(T), inside ? from + e : d_y, inside);
            }
        }
#pragma unroll 1
        for (int r = B::row(); r < PIXELS; r += B::STEP) {
            unsigned slot = tile + Tile::BM * ROW_BYTES + B::slot(r);
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                int pixel = tap_y[e] < 0 ? -1 : walk.source(p, tap_y[e] * p.down.shift_step, tap_x[e] * p.along.shift_step);
                copy_element(slot + e * sizeof(T), pixel < 0 ? x[e] : x[e] + (Len)pixel * pitch[e], pixel >= 0);
            }
            walk.move(p, small);
        }
        walk.move(p, jump);
        tile_index += p.lanes;
    }
};

/// One tile of the gradient by the weight. Grid: row tiles, column tiles, groups x lanes.
/// Lane l takes the tiles l, l + lanes, ... of the pixels.
template <class Tile, bool ALIGNED> INLINE void outer(const ConvOuter &p) {
    using T = typename Tile::T;
    constexpr int STEP = DEPTH<T>;
    extern __shared__ __align__(128) unsigned char shared[];
    int first_row = blockIdx.x * Tile::BM, first_column = blockIdx.y * Tile::BN;
    int group = blockIdx.z % p.groups, lane = blockIdx.z / p.groups;
    int all = p.kernel_taps * p.c_in, channels = p.groups * p.c_out;

    Tile tile;
    tile.clear();
    auto at = Tile::template start<false, false>();
    bool with_bias = p.d_bias && blockIdx.y == 0;
    std::conditional_t<ALIGNED, OuterColumns<Tile>, OuterElements<Tile>> both;
    if constexpr (ALIGNED) {
        both.start(p, group, lane, first_row, first_column, (int *)(shared + STAGES * STAGE_BYTES<Tile>));
        both.look_ahead(p);
    } else {
        both.start(p, group, lane, first_row, first_column);
    }
    auto reduce = [&](auto add_up) {
        int stage = 0;
#pragma unroll 1
        for (int t = lane; t < p.tiles + p.lanes; t += p.lanes) {
            await_copies<0>();
            __syncthreads();
            unsigned to = shared_address(shared) + stage * STAGE_BYTES<Tile>;
            if constexpr (ALIGNED) {
                both.look_ahead(p);
                if (t < p.tiles) both.fetch(to);
            } else {
                if (t < p.tiles) both.fetch(p, to);
            }
            commit_copies();
            stage ^= 1;
            int before = t - p.lanes;
            if (before < 0) continue;
            int terms = min(p.pixels - before * STEP, STEP);
            tile.template multiply<false, false>(at, shared + stage * STAGE_BYTES<Tile>, terms, decltype(add_up)::value);
        }
    };
    if (with_bias) reduce(std::true_type());
    else reduce(std::false_type());

    Len weights = (Len)channels * all;
    float *partial = p.lanes > 1 ? p.partial + lane * (weights + channels) : nullptr;
    if (with_bias) {
        tile.for_bias([&](int row, float sum) {
            if (first_row + row >= p.c_out) return;
            int at = group * p.c_out + first_row + row;
            if (partial) partial[weights + at] = sum;
            else put(p.d_bias + at, sum, p.add_bias);
        });
    }
    if (!p.d_weight) return;
    float *to = partial ? partial : (float *)p.d_weight;
    give<Tile, float>(tile, (float *)shared, p.c_out - first_row, all - first_column,
                      [&](int row, int column, Values<float> &values) {
        int count = min(all - first_column - column, CHUNK<float>);
        Len at = (Len)(group * p.c_out + first_row + row) * all + first_column + column;
        values.write(to + at, count, !partial && p.add);
    });
}

/// Combines the lanes of a split reduction in order; a thread has GROUP results.
template <typename T> INLINE void sum_lanes(const SumLanes &p) {
    Len i = group_start(), size = p.len + p.len2;
    int count = group_count(i, size);
    if (count == 0) return;
    Group sum = load(p.partial + i, count);
    for (int lane = 1; lane < p.lanes; lane++) {
        Group g = load(p.partial + lane * size + i, count);
#pragma unroll
        for (int k = 0; k < GROUP; k++) sum[k] += g[k];
    }
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        Len at = i + k;
        if (k >= count) continue;
        if (at >= p.len) {
            if (p.y2) put(p.y2 + (at - p.len), sum[k], p.add2);
            continue;
        }
        if (p.bias) sum[k] += p.bias[at % p.channels];
        if (p.per_image) {
            sum[k] += (float)((const T *)p.per_image)[at / p.image_len * p.channels + at % p.channels];
        }
        if (p.residual) sum[k] += (float)((const T *)p.residual)[at];
    }
    if (!p.y || i >= p.len) return;
    int own = (int)min((Len)count, p.len - i);
    T *y = (T *)p.y + i;
    if constexpr (sizeof(T) == 4) {
        store(y, sum, own, p.add);
    } else {
#pragma unroll
        for (int k = 0; k < GROUP; k++)
            if (k < own) y[k] = (T)(p.add ? sum[k] + (float)y[k] : sum[k]);
    }
}
