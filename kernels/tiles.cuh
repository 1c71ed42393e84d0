// Tiles of results: how a block multiplies two tiles of operands, and how it gives away
// what it has added up. See matmul.cuh for layout and order.
#pragma once
#include "copies.cuh"
#include "last_block.cuh"

/// Results of the largest tiles whose lanes may be split: larger ones leave no registers for
/// it, and small layers would not fill them.
constexpr int MOST_SPLIT = 64 * 64;

/// A tile of BM x BN results, of which a thread computes TM x TN with fused multiply-adds:
/// rows 4 t .. 4 t + 3 and again one tile half further, so that four lie side by side.
template <int BM_, int BN_, int TM_, int TN_> struct Fused {
    using T = float;
    static constexpr int BM = BM_, BN = BN_, TM = TM_, TN = TN_;
    static constexpr int ALONG = BN / TN, THREADS = BM / TM * ALONG;
    /// Lanes that read at once own rows 4 apart, or 1.
    static constexpr int SWIZZLE_A = TM >= 4 ? 2 : 0, SWIZZLE_B = TN >= 4 ? 2 : 0;
    static constexpr Order ORDER = PLAIN, RESULT_ORDER = PLAIN;
    static constexpr bool SPLITS = BM * BN <= MOST_SPLIT;

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

    /// Puts what a lane added up on top of the lanes before it, which `kept` holds but for the
    /// first lane.
    INLINE void fold(float *kept, bool first) {
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) {
                float &before = kept[(i * TN + j) * THREADS + threadIdx.x];
                if (!first) sums[i][j] += before;
                before = sums[i][j];
            }
    }

    /// Adds the products of `terms` terms. `with_bias` adds up the left operand as well.
    template <bool A_ROWS, bool B_ROWS, bool PART = false>
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
    static constexpr bool SPLITS = BM * BN <= MOST_SPLIT;
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

    INLINE void fold(float *kept, bool first) {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float &before = kept[((i * COLUMNS + j) * 4 + e) * THREADS + threadIdx.x];
                    if (!first) sums[i][j][e] += before;
                    before = sums[i][j][e];
                }
    }

    /// PART leaves out steps past the last term.
    template <bool A_ROWS, bool B_ROWS, bool PART = false>
    INLINE void multiply(const At &at, const unsigned char *stage, int terms, bool with_bias) {
        unsigned a_at = shared_address(stage) + at.a, b_at = shared_address(stage) + at.b;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (PART && step * (DEPTH<T> / STEPS) >= terms) break;
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

/// Neighbouring results: as many as 16 bytes of T hold.
template <typename T> struct Values {
    static constexpr int COUNT = CHUNK<T>;
    float v[COUNT];

    INLINE void clear() {
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = 0.0f;
    }

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

/// Shares the pieces of 16 bytes of T in a tile out among the threads: f(row, column).
template <class Tile, typename T, typename F> INLINE void each_piece(F f) {
    constexpr int ALONG = Tile::BN / CHUNK<T> > 0 ? Tile::BN / CHUNK<T> : 1;
#pragma unroll 1
    for (int i = threadIdx.x; i < Tile::BM * ALONG; i += Tile::THREADS) f(i / ALONG, i % ALONG * CHUNK<T>);
}

/// Gives `put(row, column, values)` the results of a tile, 16 bytes a thread side by side,
/// by way of shared memory, which must be free. Rows and columns past the last do not occur,
/// but are read: lanes that sit out would not make it fewer passes.
template <class Tile, typename T, typename Put>
INLINE void give(const Tile &tile, float *shared, int rows, int columns, Put put) {
    __syncthreads();
    tile.lay_out(shared);
    __syncthreads();
    each_piece<Tile, T>([&](int row, int column) {
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
        if (row < rows && column < columns) put(row, column, values);
    });
}

/// Number of the block's tile of results.
INLINE int tile_number(int group) { return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * group); }

template <class Tile> constexpr int STAGE_BYTES = (Tile::BM + Tile::BN) * ROW_BYTES;

/// Tiles of the reduction in shared memory: one is multiplied while the next arrives.
constexpr int STAGES = 2;
