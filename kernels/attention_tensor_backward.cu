// attention.cu's backward passes in bf16 or tf32 on tensor cores; weights, sums and lse in f32.
//
// A warp has 16 rows, a block 16 WARPS of one head of one image, and walks over tiles of
// TILE rows of the other side, PART at a time: queries over keys for d_q, keys over queries
// for d_k and d_v. Both find the weights again from lse and write what they alone sum, so
// nothing is added atomically. With heads of 256 d_k and d_v do not both fit into registers
// and take a pass each. Of a row's two left operands the first is kept in registers, and
// the second too where they suffice; weights become left operands without leaving
// registers. Wide heads take 8 warps, which share what is brought of the other side.
//
//   p = 2^(scale' s - lse'), d_s = p (d_p - delta), scale' = scale log2 e, lse' = lse log2 e
//
// delta, subtracted, is what the product d_p starts from.
#include "attention_tensor.cuh"

/// Statistics of a pair of queries in memory: -delta twice, then -lse', then -delta again,
/// so that 16 bytes hold all that one query needs.
constexpr int PAIR = 8;

/// Writes the statistics, eight lanes a query.
template <typename T> INLINE void delta(const AttentionBackward &p) {
    constexpr int COUNT = CHUNK<T>;
    Head head(p);
    Len query = (Len)blockIdx.x * 32 + threadIdx.x / 8, pairs = (p.s_q + 1) / 2;
    int lane = threadIdx.x % 8;
    bool exists = query < p.s_q;
    const T *o = (const T *)p.o + head.q + query * head.row;
    const T *d_o = (const T *)p.d_o + head.q + query * head.row;
    float sum = 0.0f;
    if (exists && p.head_dim % COUNT == 0) {
        for (int d = lane * COUNT; d < p.head_dim; d += 8 * COUNT) {
            Values<T> a = {}, b = {};
            a.add(o + d, COUNT);
            b.add(d_o + d, COUNT);
#pragma unroll
            for (int e = 0; e < COUNT; e++) sum = fmaf(a.v[e], b.v[e], sum);
        }
    } else if (exists) {
        for (int d = lane; d < p.head_dim; d += 8) sum = fmaf((float)o[d], (float)d_o[d], sum);
    }
#pragma unroll
    for (int d = 4; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (query / 2 >= pairs || lane >= 4) return;
    float lse = exists ? p.lse[head.queries + query] * LOG2_E : 0.0f;
    float *pair = p.delta + (((Len)blockIdx.z * p.heads + blockIdx.y) * pairs + query / 2) * PAIR;
    pair[lane * 2 + query % 2] = lane == 2 ? -lse : -sum;
}

ENTRY(attention_backward_delta_bf16, AttentionBackward, 256) { delta<Bf16>(p); }
ENTRY(attention_backward_delta_tf32, AttentionBackward, 256) { delta<float>(p); }

/// What a pass finds.
enum Target { D_Q, D_K, D_V, D_K_AND_V };

INLINE void read_quad(float (&to)[4], unsigned at) {
    asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
                 : "r"(at)
                 : "memory");
}

/// Shared memory: two stages of tiles of the other side, through which the left operands
/// that are kept have come; a left operand that is not kept; statistics of two stages.
template <typename T, int D, int WARPS, int TILE, int PART, Target TARGET, bool KEEP_SECOND, bool ALIGNED = true>
INLINE void backward(const AttentionBackward &p) {
    using Tile = HeadTile<T, D>;
    using Rows = HeadRows<T, D, 32 * WARPS, ALIGNED>;
    constexpr int OWN_ROWS = 16 * WARPS;
    constexpr bool BY_KEYS = TARGET != D_Q, WEIGHTS = TARGET == D_V || TARGET == D_K_AND_V;
    constexpr bool SCORES = TARGET != D_V;
    constexpr unsigned BYTES = TILE * Tile::PITCH, STAGE = 2 * BYTES, OWN = OWN_ROWS * Tile::PITCH;
    static_assert(OWN_ROWS <= 4 * TILE + (SCORES && !KEEP_SECOND ? OWN_ROWS : 0), "room for a left operand");
    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned stages = shared_address(shared), second = stages + 2 * STAGE;
    unsigned statistics = second + (SCORES && !KEEP_SECOND ? OWN : 0);
    unsigned warp_rows = threadIdx.x / 32 * 16 * Tile::PITCH;
    Head head(p);
    Len rows = BY_KEYS ? p.s_kv : p.s_q, others = BY_KEYS ? p.s_q : p.s_kv;
    Len from = (Len)blockIdx.x * OWN_ROWS, own = BY_KEYS ? head.kv : head.q, other = BY_KEYS ? head.q : head.kv;
    int there = (int)min(rows - from, (Len)OWN_ROWS);

    LaneSteps<T> by_rows(Tile::by_rows()), by_columns(Tile::by_columns());
    constexpr int STEPS = D / TERMS<T>;
    unsigned a1[STEPS][1][4], a2[KEEP_SECOND ? STEPS : 1][1][4];
    auto bring = [&](const void *tensor, unsigned tile) {
        Rows mine(tensor, own, p.pitch, p.head_dim);
        mine.seek(from);
        mine.template fetch<OWN_ROWS>(tile, there);
        commit_copies();
        await_copies<0>();
        mine.template round<OWN_ROWS, 1>(tile);
        __syncthreads();
    };
    bring(BY_KEYS ? p.k : p.q, stages);
#pragma unroll
    for (int k = 0; k < STEPS; k++) load_left<T, D, 1>(a1[k], stages + warp_rows, by_rows, k);
    __syncthreads();
    if constexpr (SCORES) {
        bring(BY_KEYS ? p.v : p.d_o, KEEP_SECOND ? stages : second);
        if constexpr (KEEP_SECOND) {
#pragma unroll
            for (int k = 0; k < STEPS; k++) load_left<T, D, 1>(a2[k], stages + warp_rows, by_rows, k);
            __syncthreads();
        }
    }

    int left = (int)((others - 1) / TILE);
    // The last tile, which may be short, comes first.
    Len last = (Len)left * TILE;
    int short_rows = (int)(others - last);
    const char *first = (const char *)(BY_KEYS ? p.q : p.k), *then = (const char *)(BY_KEYS ? p.d_o : p.v);
    Rows both(first, other, p.pitch, p.head_dim);
    Len apart = then - first;
    Len pairs = (p.s_q + 1) / 2, of_head = ((Len)blockIdx.z * p.heads + blockIdx.y) * pairs;
    const float *pair = p.delta + of_head * PAIR;
    auto fetch_pairs = [&](unsigned to, Len first, int count) {
        int i = threadIdx.x;
        if (BY_KEYS) copy16_where(i < TILE, to + i * 16, pair + first / 2 * PAIR + i * 4, i < (count + 1) / 2 * 2);
    };
    both.seek(last);
    both.template fetch<TILE, 2>(stages, apart, short_rows);
    fetch_pairs(statistics, last, short_rows);
    commit_copies();
    both.seek(-last - TILE);

    float scale = p.scale * LOG2_E;
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    // Of rows g and g + 8, where rows are queries.
    float lse[2] = {}, delta[2] = {};
    if constexpr (!BY_KEYS) {
        // Two of four lanes read, the others are told.
        Len query = from + threadIdx.x / 32 * 16 + g + 8 * t;
        float4 quad = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (t < 2 && query < p.s_q) quad = *(const float4 *)(pair + query / 2 * PAIR + 4);
        bool is_second = query % 2;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            lse[h] = __shfl_sync(0xffffffffu, is_second ? quad.y : quad.x, h, 4);
            delta[h] = __shfl_sync(0xffffffffu, is_second ? quad.w : quad.z, h, 4);
        }
    }
    float d1[1][SCORES ? D / 8 : 1][4] = {}, d2[1][WEIGHTS ? D / 8 : 1][4] = {};

    unsigned stage = 0, statistics_stage = 0;
    Len next = 0;
    auto turn = [&](auto is_short) {
        await_copies<0>();
        both.template round<TILE, 2>(stages + stage);
        __syncthreads();
        if (left > 0) {
            both.template fetch<TILE, 2>(stages + (STAGE - stage), apart);
            fetch_pairs(statistics + (TILE * 16 - statistics_stage), next, TILE);
        }
        commit_copies();
        next += TILE;
        left--;
#pragma unroll
        for (int part = 0; part < TILE / PART; part++) {
            unsigned b1_tile = stages + stage + part * PART * Tile::PITCH, b2_tile = b1_tile + BYTES;
            [[maybe_unused]] unsigned at = statistics + statistics_stage + t * 32 + part * (PART * 16);
            // Keeps the compiler from keeping what it has loaded of the second operand.
            if (part > 0 && !KEEP_SECOND) __syncwarp();
            float s[1][PART / 8][4] = {};
            [[maybe_unused]] float d_p[1][SCORES ? PART / 8 : 1][4];
            if constexpr (SCORES) {
#pragma unroll
                for (int j = 0; j < PART / 8; j++) {
                    if constexpr (BY_KEYS) read_quad(d_p[0][j], at + j * 128);
                    else d_p[0][j][0] = d_p[0][j][1] = delta[0], d_p[0][j][2] = d_p[0][j][3] = delta[1];
                }
            }
            // Step by step together the two products wait less, but take more registers.
            constexpr bool TOGETHER = Tile::CHUNKS < 32;
#pragma unroll
            for (int i = 0; i < (TOGETHER || !SCORES ? 1 : 2) * STEPS; i++) {
                int k = i % STEPS;
                if (TOGETHER || i == k) step<T, D, PART, 1>(s, b1_tile, by_columns, k, a1[k]);
                if constexpr (SCORES) {
                    if (!TOGETHER && i == k) continue;
                    if constexpr (KEEP_SECOND) {
                        step<T, D, PART, 1>(d_p, b2_tile, by_columns, k, a2[k]);
                    } else {
                        unsigned a[1][4];
                        load_left<T, D, 1>(a, second + warp_rows, by_rows, k);
                        step<T, D, PART, 1>(d_p, b2_tile, by_columns, k, a);
                    }
                }
            }
            unsigned w[1][PART / TERMS<T>][4];
#pragma unroll
            for (int j = 0; j < PART / 8; j++) {
                float of_columns[4];
                if constexpr (BY_KEYS) read_quad(of_columns, at + j * 128 + 16);
#pragma unroll
                for (int e = 0; e < 4; e++)
                    s[0][j][e] = exp2_fast(fmaf(s[0][j][e], scale, BY_KEYS ? of_columns[e % 2] : lse[e / 2]));
                if constexpr (WEIGHTS) {
                    put_left<T, PART>(w[0], j, 0, s[0][j][0], s[0][j][1]);
                    put_left<T, PART>(w[0], j, 1, s[0][j][2], s[0][j][3]);
                }
            }
            if constexpr (WEIGHTS) accumulate<T, D, PART, 1>(d2, w, b2_tile, by_rows);
            if constexpr (SCORES) {
#pragma unroll
                for (int j = 0; j < PART / 8; j++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        d_p[0][j][e] = s[0][j][e] * d_p[0][j][e];
                        // A key that does not exist may have a weight beyond all bounds.
                        if (decltype(is_short)::value && part * PART + 8 * j + 2 * t + e % 2 >= short_rows) d_p[0][j][e] = 0.0f;
                    }
                    put_left<T, PART>(w[0], j, 0, d_p[0][j][0], d_p[0][j][1]);
                    put_left<T, PART>(w[0], j, 1, d_p[0][j][2], d_p[0][j][3]);
                }
                accumulate<T, D, PART, 1>(d1, w, b1_tile, by_rows);
            }
        }
        stage = STAGE - stage;
        statistics_stage = TILE * 16 - statistics_stage;
    };
    if constexpr (!BY_KEYS) turn(std::true_type());
#pragma unroll 1
    while (left >= 0) turn(std::false_type());

    __syncthreads();
    Len row = from + threadIdx.x / 32 * 16, exist = rows - row;
    if (exist <= 0) return;
    const float one[2] = {1.0f, 1.0f}, scales[2] = {p.scale, p.scale};
    Len at = own + row * head.row;
    unsigned mine = stages + warp_rows;
    if constexpr (SCORES) {
        void *d = BY_KEYS ? p.d_k : p.d_q;
        if (d) deliver<T, D>(d, at, head.row, p.head_dim, exist, mine, d1[0], scales, BY_KEYS ? p.add_k : p.add_q);
    }
    if constexpr (WEIGHTS) {
        if (p.d_v) deliver<T, D>(p.d_v, at, head.row, p.head_dim, exist, mine, d2[0], one, p.add_v);
    }
}

ENTRY(attention_backward_query_16_bf16, AttentionBackward, 128, 1) { backward<Bf16, 16, 4, 64, 64, D_Q, true>(p); }
ENTRY(attention_backward_query_32_bf16, AttentionBackward, 128) { backward<Bf16, 32, 4, 64, 64, D_Q, true>(p); }
ENTRY(attention_backward_query_64_bf16, AttentionBackward, 128) { backward<Bf16, 64, 4, 64, 64, D_Q, true>(p); }
ENTRY(attention_backward_query_128_bf16, AttentionBackward, 256) { backward<Bf16, 128, 8, 64, 64, D_Q, true>(p); }
ENTRY(attention_backward_query_256_bf16, AttentionBackward, 256) { backward<Bf16, 256, 8, 16, 16, D_Q, false>(p); }
ENTRY(attention_backward_query_odd_64_bf16, AttentionBackward, 128) { backward<Bf16, 64, 4, 64, 64, D_Q, true, false>(p); }
ENTRY(attention_backward_query_odd_256_bf16, AttentionBackward, 128) { backward<Bf16, 256, 4, 16, 16, D_Q, false, false>(p); }
ENTRY(attention_backward_key_16_bf16, AttentionBackward, 128) { backward<Bf16, 16, 4, 64, 64, D_K_AND_V, true>(p); }
ENTRY(attention_backward_key_32_bf16, AttentionBackward, 128) { backward<Bf16, 32, 4, 64, 64, D_K_AND_V, true>(p); }
ENTRY(attention_backward_key_64_bf16, AttentionBackward, 128) { backward<Bf16, 64, 4, 64, 64, D_K_AND_V, true>(p); }
ENTRY(attention_backward_key_128_bf16, AttentionBackward, 256) { backward<Bf16, 128, 8, 64, 32, D_K_AND_V, false>(p); }
ENTRY(attention_backward_key_256_bf16, AttentionBackward, 256) { backward<Bf16, 256, 8, 16, 16, D_K, false>(p); }
ENTRY(attention_backward_value_256_bf16, AttentionBackward, 256) { backward<Bf16, 256, 8, 32, 32, D_V, false>(p); }
ENTRY(attention_backward_key_odd_64_bf16, AttentionBackward, 128) { backward<Bf16, 64, 4, 64, 64, D_K_AND_V, true, false>(p); }
ENTRY(attention_backward_key_odd_256_bf16, AttentionBackward, 128) { backward<Bf16, 256, 4, 16, 16, D_K, false, false>(p); }
ENTRY(attention_backward_value_odd_256_bf16, AttentionBackward, 128) { backward<Bf16, 256, 4, 32, 32, D_V, false, false>(p); }
ENTRY(attention_backward_query_32_tf32, AttentionBackward, 128, 1) { backward<float, 32, 4, 32, 32, D_Q, true>(p); }
ENTRY(attention_backward_query_64_tf32, AttentionBackward, 128, 1) { backward<float, 64, 4, 32, 32, D_Q, true>(p); }
ENTRY(attention_backward_query_128_tf32, AttentionBackward, 128, 1) { backward<float, 128, 4, 16, 16, D_Q, false>(p); }
ENTRY(attention_backward_key_32_tf32, AttentionBackward, 128, 1) { backward<float, 32, 4, 32, 32, D_K_AND_V, true>(p); }
ENTRY(attention_backward_key_64_tf32, AttentionBackward, 128, 1) { backward<float, 64, 4, 32, 32, D_K_AND_V, true>(p); }
ENTRY(attention_backward_key_128_tf32, AttentionBackward, 128, 1) { backward<float, 128, 4, 16, 16, D_K_AND_V, false>(p); }
