// attention.cu's forward pass in bf16 on tensor cores; sums, softmax and lse in f32.
//
// A warp has 16 queries, a block 16 WARPS of one head of one image. It walks over tiles of
// KEYS keys and values, of which cp.async brings the next while one is multiplied. Scores
// stay in registers and become the left operand of the product with the values, where a
// column of ones adds up the weights as they were rounded.
//
// The softmax is online (Milakov & Gimelshein 2018), but a row's reference is not the
// largest score so far: weights are 2^(score - reference) and may be anything below 2.
// A warp raises its references only when a weight reaches 2, which the top bit of its
// exponent says, and then to HEADROOM above the largest score. Neither bf16 nor f32 lose
// precision by a power of two, so the quotient is the same; what changes is that the loop
// neither compares nor rescales. A score 2^-111 below the largest counts as 0.
#include "attention_tensor.cuh"

constexpr float HEADROOM = 15.0f;
constexpr unsigned ONES = 0x3f803f80u;

/// A block's queries, M times 16 a warp; behind them two stages of keys, two of values.
template <int D, int KEYS, int M, bool ALIGNED> INLINE void forward(const Attention &p) {
    using Tile = HeadTile<D>;
    using Rows = HeadRows<D, 128, ALIGNED>;
    constexpr int QUERIES = 64 * M;
    constexpr unsigned BYTES = KEYS * Tile::PITCH;
    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned q_tile = shared_address(shared), k_tile = q_tile + QUERIES * Tile::PITCH;
    unsigned v_tile = k_tile + 2 * BYTES, mine = q_tile + threadIdx.x / 32 * 16 * M * Tile::PITCH;
    Head head(p);
    Len from = (Len)blockIdx.x * QUERIES;
    int left = (int)((p.s_kv - 1) / KEYS);
    // The last tile, which may be short, comes first.
    Len last = (Len)left * KEYS;
    int there = (int)(p.s_kv - last);
    Rows q_rows(p.q, head.q, p.pitch, p.head_dim);
    Rows k_rows(p.k, head.kv, p.pitch, p.head_dim), v_rows(p.v, head.kv, p.pitch, p.head_dim);
    q_rows.seek(from);
    q_rows.template fetch<QUERIES>(q_tile, (int)min(p.s_q - from, (Len)QUERIES));
    k_rows.seek(last);
    k_rows.template fetch<KEYS>(k_tile, there);
    k_rows.seek(-last - KEYS);
    commit_copies();
    await_copies<0>();
    __syncthreads();
    if (left > 0) k_rows.template fetch<KEYS>(k_tile + BYTES);
    v_rows.seek(last);
    v_rows.template fetch<KEYS>(v_tile, there);
    v_rows.seek(-last - KEYS);
    commit_copies();

    float scale = p.scale * LOG2_E;
    // Of rows g and g + 8 of each 16.
    float reference[M][2], o[M][D / 8][4] = {}, total[M][4] = {}, s[M][KEYS / 8][4];
#pragma unroll
    for (int m = 0; m < M; m++) reference[m][0] = reference[m][1] = -INFINITY;
    unsigned w[M][KEYS / 16][4];
    LaneSteps rows(Tile::by_rows()), columns(Tile::by_columns());
    // With 32 rows a warp, and element by element, they are read again for each tile.
    constexpr bool KEPT = M == 1 && ALIGNED;
    unsigned q[KEPT ? D / 16 : 1][4];
    if constexpr (KEPT) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) load_matrices(q[k], mine + rows(k));
    }
    auto score = [&](unsigned tile) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[m][j][e] = 0.0f;
        products<D, KEYS, M>(s, tile, columns, [&](unsigned(&a)[M][4], int k) {
            if constexpr (KEPT) {
#pragma unroll
                for (int e = 0; e < 4; e++) a[0][e] = q[k][e];
            } else {
                load_left<D, M>(a, mine, rows, k);
            }
        });
    };
    auto weigh = [&] {
        unsigned any = 0;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float low = exp2_fast(fmaf(s[m][j][2 * h], scale, -reference[m][h]));
                    float high = exp2_fast(fmaf(s[m][j][2 * h + 1], scale, -reference[m][h]));
                    any |= w[m][j / 2][j % 2 * 2 + h] = pack(low, high);
                }
        return __any_sync(0xffffffffu, (any & 0x40004000u) != 0);
    };
    auto raise = [&] {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float most = -INFINITY;
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
                    most = fmaxf(most, fmaxf(s[m][j][2 * h] * scale, s[m][j][2 * h + 1] * scale));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                most = fmaxf(reference[m][h], most + HEADROOM);
                float kept = exp2_fast(reference[m][h] - most);
                reference[m][h] = most;
                total[m][2 * h] *= kept;
                total[m][2 * h + 1] *= kept;
#pragma unroll
                for (int j = 0; j < D / 8; j++) {
                    o[m][j][2 * h] *= kept;
                    o[m][j][2 * h + 1] *= kept;
                }
            }
    };
    auto add_values = [&](unsigned tile) {
        accumulate<D, KEYS, M>(o, w, tile, rows);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++) mma(total[m], w[m][i], ONES, ONES, total[m]);
    };

    unsigned stage = 0;
    for (bool over = true; over;) {
        score(k_tile + stage);
        if (there < KEYS) {
            float none = scale < 0.0f ? INFINITY : -INFINITY;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (8 * j + (int)threadIdx.x % 4 * 2 + e % 2 >= there) s[m][j][e] = none;
            there = KEYS;
        }
        raise();
        weigh();
        over = false;
        // A turn multiplies the weights of the tile before while this one's are found.
#pragma unroll 1
        while (left > 0 && !over) {
            await_copies<0>();
            __syncthreads();
            left--;
            if (left > 0) k_rows.template fetch<KEYS>(k_tile + stage);
            v_rows.template fetch<KEYS>(v_tile + (BYTES - stage));
            commit_copies();
            add_values(v_tile + stage);
            stage = BYTES - stage;
            score(k_tile + stage);
            over = weigh();
        }
    }
    await_copies<0>();
    __syncthreads();
    add_values(v_tile + stage);

#pragma unroll
    for (int m = 0; m < M; m++) {
        Len row = from + threadIdx.x / 32 * 16 * M + m * 16, there = p.s_q - row;
        if (there <= 0) return;
        float inverse[2] = {1.0f / total[m][0], 1.0f / total[m][2]};
        deliver<D>(p.o, head.q + row * head.row, head.row, p.head_dim, there, mine, o[m], inverse, false);
        int g = threadIdx.x % 32 / 4;
        if (threadIdx.x % 4 == 0) {
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (g + 8 * h < there)
                    p.lse[head.queries + row + g + 8 * h] =
                        fmaf(reference[m][h], LN_2, logf(total[m][2 * h]));
        }
    }
}

ENTRY(attention_forward_16_bf16, Attention, 128) { forward<16, 64, 1, true>(p); }
ENTRY(attention_forward_32_bf16, Attention, 128) { forward<32, 64, 1, true>(p); }
ENTRY(attention_forward_64_bf16, Attention, 128) { forward<64, 64, 1, true>(p); }
ENTRY(attention_forward_128_bf16, Attention, 128, 1) { forward<128, 64, 1, true>(p); }
ENTRY(attention_forward_256_bf16, Attention, 128) { forward<256, 32, 1, true>(p); }
ENTRY(attention_forward_tall_64_bf16, Attention, 128) { forward<64, 64, 2, true>(p); }
ENTRY(attention_forward_tall_128_bf16, Attention, 128) { forward<128, 48, 2, true>(p); }
ENTRY(attention_forward_odd_64_bf16, Attention, 128) { forward<64, 64, 1, false>(p); }
ENTRY(attention_forward_odd_256_bf16, Attention, 128) { forward<256, 16, 1, false>(p); }
