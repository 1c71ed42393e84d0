// attention.cu's forward pass in bf16 or tf32 on tensor cores; sums, softmax and lse in f32.
//
// A warp has 16 or 32 queries of one head of one image. The block walks over tiles of TILE
// keys and values, of which cp.async brings the next while one is multiplied, PART keys at a
// time. Queries stay in registers, and so do the scores, which become the left operand of
// the product with the values. The product takes rounded weights; their sum, by which it is
// divided and from which lse comes, is of the weights in f32.
//
// The softmax is online (Milakov & Gimelshein 2018), but a row's reference is not the
// largest score so far: weights are 2^(score - reference), and their sum may be anything
// below 2. A warp raises its references only when a sum reaches 2, which the top bit of its
// exponent says, and then to HEADROOM above the largest score. Neither bf16 nor f32 lose
// precision by a power of two, so the quotient is the same; what changes is that the loop
// neither compares nor rescales. A score 2^-96 below the largest counts as 0.
#include "attention_tensor.cuh"

constexpr float HEADROOM = 30.0f;

/// M times 16 queries a warp. Shared memory: two stages of tiles of keys and of values,
/// through which the queries have come.
template <typename T, int D, int TILE, int PART, int M, int WARPS, bool ALIGNED = true>
INLINE void forward(const Attention &p) {
    using Tile = HeadTile<T, D>;
    using Rows = HeadRows<T, D, 32 * WARPS, ALIGNED>;
    constexpr int QUERIES = 16 * M * WARPS;
    constexpr unsigned BYTES = TILE * Tile::PITCH, STAGE = 2 * BYTES;
    static_assert(QUERIES <= 4 * TILE && TILE % PART == 0, "room for the queries, whole parts");
    // Where they fit into the second stage the first tile comes beside them.
    constexpr bool BESIDE = QUERIES <= 2 * TILE;
    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned stages = shared_address(shared), q_tile = stages + (BESIDE ? STAGE : 0);
    unsigned warp_rows = threadIdx.x / 32 * 16 * M * Tile::PITCH;
    Head head(p);
    Len from = (Len)blockIdx.x * QUERIES;
    int left = (int)((p.s_kv - 1) / TILE);
    // The last tile, which may be short, comes first.
    Len last = (Len)left * TILE;
    int there = (int)(p.s_kv - last);
    Rows kv_rows(p.k, head.kv, p.pitch, p.head_dim);
    Len apart = (const char *)p.v - (const char *)p.k;
    auto fetch_first = [&] {
        kv_rows.seek(last);
        kv_rows.template fetch<TILE, 2>(stages, apart, there);
        kv_rows.seek(-last - TILE);
        commit_copies();
    };
    {
        Rows q_rows(p.q, head.q, p.pitch, p.head_dim);
        q_rows.seek(from);
        q_rows.template fetch<QUERIES>(q_tile, (int)min(p.s_q - from, (Len)QUERIES));
        commit_copies();
        if (BESIDE) fetch_first();
        await_copies<BESIDE>();
        q_rows.template round<QUERIES, 1>(q_tile);
        __syncthreads();
    }
    LaneSteps<T> rows(Tile::by_rows()), columns(Tile::by_columns());
    unsigned q[D / TERMS<T>][M][4];
#pragma unroll
    for (int k = 0; k < D / TERMS<T>; k++) load_left<T, D, M>(q[k], q_tile + warp_rows, rows, k);
    __syncthreads();
    if (!BESIDE) fetch_first();

    float scale = p.scale * LOG2_E;
    // Of rows g and g + 8 of each 16.
    float reference[M][2], sum[M][2] = {}, next_sum[M][2], s[M][PART / 8][4];
    float o[M][D / 8][4] = {};
    unsigned w[M][PART / TERMS<T>][4];
#pragma unroll
    for (int m = 0; m < M; m++) reference[m][0] = reference[m][1] = -INFINITY;

    unsigned stage = 0;
    auto arrive = [&] {
        await_copies<0>();
        kv_rows.template round<TILE, 2>(stages + stage);
        __syncthreads();
    };
    auto prefetch = [&] {
        kv_rows.template fetch<TILE, 2>(stages + (STAGE - stage), apart);
        commit_copies();
    };
    auto score = [&](unsigned tile) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int j = 0; j < PART / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[m][j][e] = 0.0f;
#pragma unroll
        for (int k = 0; k < D / TERMS<T>; k++) step<T, D, PART, M>(s, tile, columns, k, q[k]);
    };
    auto weigh = [&] {
        unsigned any = 0;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                next_sum[m][h] = sum[m][h];
#pragma unroll
                for (int j = 0; j < PART / 8; j++) {
                    float first = exp2_fast(fmaf(s[m][j][2 * h], scale, -reference[m][h]));
                    float second = exp2_fast(fmaf(s[m][j][2 * h + 1], scale, -reference[m][h]));
                    put_left<T, PART>(w[m], j, h, first, second);
                    next_sum[m][h] += first;
                    next_sum[m][h] += second;
                }
                any |= __float_as_uint(next_sum[m][h]);
            }
        return __any_sync(0xffffffffu, (any & 0xc0000000u) != 0);
    };
    auto raise = [&] {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float most = -INFINITY;
#pragma unroll
                for (int j = 0; j < PART / 8; j++)
                    most = fmaxf(most, fmaxf(s[m][j][2 * h] * scale, s[m][j][2 * h + 1] * scale));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                most = fmaxf(reference[m][h], most + HEADROOM);
                float kept = exp2_fast(reference[m][h] - most);
                reference[m][h] = most;
                sum[m][h] *= kept;
#pragma unroll
                for (int j = 0; j < D / 8; j++) {
                    o[m][j][2 * h] *= kept;
                    o[m][j][2 * h + 1] *= kept;
                }
            }
    };
    auto add_values = [&](unsigned tile) {
        accumulate<T, D, PART, M>(o, w, tile, rows);
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) sum[m][h] = next_sum[m][h];
        }
    };

    arrive();
    if (left > 0) prefetch();
    // The first tile, the last one, and what is left of one in which a sum reached 2 take
    // the loop that can mask and raise, all others the one that cannot.
    int part = 0;
again:
#pragma unroll 1
    for (; part < TILE && part < there; part += PART) {
        unsigned tile = stages + stage + part * Tile::PITCH;
        score(tile);
        if (there < TILE) {
            float none = scale < 0.0f ? INFINITY : -INFINITY;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int j = 0; j < PART / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (part + 8 * j + (int)threadIdx.x % 4 * 2 + e % 2 >= there) s[m][j][e] = none;
        }
        if (weigh()) {
            raise();
            weigh();
        }
        add_values(tile + BYTES);
    }
    there = TILE;
    stage = STAGE - stage;
#pragma unroll 1
    while (--left > 0) {
        arrive();
        prefetch();
#pragma unroll
        for (int i = 0; i < TILE; i += PART) {
            unsigned tile = stages + stage + i * Tile::PITCH;
            score(tile);
            if (weigh()) {
                part = i;
                keep(part);
                goto again;
            }
            add_values(tile + BYTES);
        }
        stage = STAGE - stage;
    }
    if (left == 0) {
        arrive();
        part = 0;
        goto again;
    }

    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; m++) {
        Len row = from + threadIdx.x / 32 * 16 * M + m * 16, exist = p.s_q - row;
        if (exist <= 0) return;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[m][h] += __shfl_xor_sync(0xffffffffu, sum[m][h], 1);
            sum[m][h] += __shfl_xor_sync(0xffffffffu, sum[m][h], 2);
        }
        float inverse[2] = {1.0f / sum[m][0], 1.0f / sum[m][1]};
        deliver<T, D>(p.o, head.q + row * head.row, head.row, p.head_dim, exist, stages + warp_rows, o[m], inverse, false);
        int g = threadIdx.x % 32 / 4;
        if (threadIdx.x % 4 == 0) {
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (g + 8 * h < exist)
                    p.lse[head.queries + row + g + 8 * h] =
                        fmaf(reference[m][h], LN_2, logf(sum[m][h]));
        }
    }
}

ENTRY(attention_forward_16_bf16, Attention, 128, 1) { forward<Bf16, 16, 64, 64, 1, 4>(p); }
ENTRY(attention_forward_32_bf16, Attention, 128, 1) { forward<Bf16, 32, 64, 64, 1, 4>(p); }
ENTRY(attention_forward_64_bf16, Attention, 128, 1) { forward<Bf16, 64, 64, 64, 1, 4>(p); }
ENTRY(attention_forward_128_bf16, Attention, 128, 1) { forward<Bf16, 128, 64, 64, 1, 4>(p); }
ENTRY(attention_forward_256_bf16, Attention, 256, 1) { forward<Bf16, 256, 32, 32, 1, 8>(p); }
ENTRY(attention_forward_tall_64_bf16, Attention, 128, 1) { forward<Bf16, 64, 64, 64, 2, 4>(p); }
ENTRY(attention_forward_tall_128_bf16, Attention, 256, 1) { forward<Bf16, 128, 96, 16, 2, 8>(p); }
ENTRY(attention_forward_odd_64_bf16, Attention, 128, 1) { forward<Bf16, 64, 64, 64, 1, 4, false>(p); }
ENTRY(attention_forward_odd_256_bf16, Attention, 128, 1) { forward<Bf16, 256, 16, 16, 1, 4, false>(p); }
ENTRY(attention_forward_32_tf32, Attention, 128, 1) { forward<float, 32, 64, 32, 1, 4>(p); }
ENTRY(attention_forward_64_tf32, Attention, 128, 1) { forward<float, 64, 32, 32, 1, 4>(p); }
ENTRY(attention_forward_128_tf32, Attention, 128, 1) { forward<float, 128, 32, 16, 1, 4>(p); }
