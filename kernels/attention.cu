// o = softmax(scale q k^T) v by heads, nothing of size s_q x s_kv (Dao et al. 2022).
//
// q, o: [n, s_q, heads, head_dim], k, v: [n, s_kv, heads, head_dim], lse, delta:
// [n, heads, s_q]; f32 throughout, FFMA.
// A block has B rows (queries; keys in the pass for d_k and d_v) of one head of one
// image and walks over tiles of B rows of the other side. Its 4 B threads stand 8
// wide: a thread owns rows 2 ty, 2 ty + 1 and, of scores, columns tx + 8 j, of
// results, channels 4 (tx + 8 j) .. + 3. Head dimensions are filled up with zeros to
// D = 32, 64, 128 or 256. Tiles are fixed by the shape of one image, and every sum
// has one order: the backward recomputes probabilities once for d_q and once for d_k
// and d_v rather than add atomically.
#include "attention.cuh"

/// Sizes of a kernel for head dimensions up to D with tiles of B rows.
template <int D, int B> struct Tiles {
    static constexpr int THREADS = 4 * B;
    static constexpr int ROW = D + 4;     // floats: neighbouring rows in other banks
    static constexpr int WEIGHTS = B + 4; // of a row of scores
    static constexpr int COLUMNS = B / 8; // scores of a thread's row
    static constexpr int CHANNELS = D / 8; // results of a thread's row
};

/// Copies B rows from row `from` of a head on into a tile; zeros outside.
template <int D, int B>
INLINE void fill(float *tile, const float *head, Len row, int dim, Len from, Len rows) {
    using T = Tiles<D, B>;
    if (dim % 4 == 0) {
        for (int i = threadIdx.x; i < B * (D / 4); i += T::THREADS) {
            int r = i / (D / 4), d = i % (D / 4) * 4;
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (from + r < rows && d < dim) x = *(const float4 *)(head + (from + r) * row + d);
            *(float4 *)(tile + r * T::ROW + d) = x;
        }
    } else {
        for (int i = threadIdx.x; i < B * D; i += T::THREADS) {
            int r = i / D, d = i % D;
            bool there = from + r < rows && d < dim;
            tile[r * T::ROW + d] = there ? head[(from + r) * row + d] : 0.0f;
        }
    }
}

/// s[i][j] = <a's row i, b's row 8 j>.
template <int D, int B>
INLINE void products(const float *a, const float *b, float (&s)[2][B / 8]) {
    using T = Tiles<D, B>;
#pragma unroll
    for (int j = 0; j < T::COLUMNS; j++) s[0][j] = s[1][j] = 0.0f;
#pragma unroll 4
    for (int d = 0; d < D; d += 4) {
        float4 x[2] = {*(const float4 *)(a + d), *(const float4 *)(a + T::ROW + d)};
#pragma unroll
        for (int j = 0; j < T::COLUMNS; j++) {
            float4 y = *(const float4 *)(b + 8 * j * T::ROW + d);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                s[i][j] = fmaf(x[i].x, y.x, s[i][j]);
                s[i][j] = fmaf(x[i].y, y.y, s[i][j]);
                s[i][j] = fmaf(x[i].z, y.z, s[i][j]);
                s[i][j] = fmaf(x[i].w, y.w, s[i][j]);
            }
        }
    }
}

/// sums[i] += sum_k weights[i][k] values[k], over the B rows of a tile.
template <int D, int B>
INLINE void accumulate(const float *weights, const float *values, float (&sums)[2][D / 8]) {
    using T = Tiles<D, B>;
#pragma unroll 2
    for (int k = 0; k < B; k += 4) {
        float w[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float4 f = *(const float4 *)(weights + i * T::WEIGHTS + k);
            w[i][0] = f.x, w[i][1] = f.y, w[i][2] = f.z, w[i][3] = f.w;
        }
#pragma unroll
        for (int r = 0; r < 4; r++) {
#pragma unroll
            for (int j = 0; j < D / 32; j++) {
                float4 v = *(const float4 *)(values + (k + r) * T::ROW + 32 * j);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    sums[i][4 * j] = fmaf(w[i][r], v.x, sums[i][4 * j]);
                    sums[i][4 * j + 1] = fmaf(w[i][r], v.y, sums[i][4 * j + 1]);
                    sums[i][4 * j + 2] = fmaf(w[i][r], v.z, sums[i][4 * j + 2]);
                    sums[i][4 * j + 3] = fmaf(w[i][r], v.w, sums[i][4 * j + 3]);
                }
            }
        }
    }
}

/// Writes (or adds) a thread's results of row `at` of a head.
template <int D>
INLINE void deliver(float *head, Len row, int dim, Len at, const float (&x)[D / 8], float scale,
                    bool add) {
    int tx = threadIdx.x % 8;
#pragma unroll
    for (int j = 0; j < D / 32; j++) {
        int d = 4 * tx + 32 * j;
        Group g = {x[4 * j] * scale, x[4 * j + 1] * scale, x[4 * j + 2] * scale,
                   x[4 * j + 3] * scale};
        store(head + at * row + d, g, max(0, min(GROUP, dim - d)), add);
    }
}

/// Over the 8 threads of a row.
INLINE float row_max(float x) {
#pragma unroll
    for (int d = 4; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

INLINE float row_sum(float x) {
#pragma unroll
    for (int d = 4; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

template <int D, int B> INLINE void forward(const Attention &p) {
    using T = Tiles<D, B>;
    extern __shared__ __align__(16) float shared[];
    float *q = shared, *kv = q + B * T::ROW, *weights = kv + B * T::ROW;
    Head head(p);
    int tx = threadIdx.x % 8, mine = threadIdx.x / 8 * 2;
    Len from = (Len)blockIdx.x * B;
    fill<D, B>(q, (const float *)p.q + head.q, head.row, p.head_dim, from, p.s_q);
    float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}, o[2][T::CHANNELS] = {};
    for (Len first = 0; first < p.s_kv; first += B) {
        __syncthreads();
        fill<D, B>(kv, (const float *)p.k + head.kv, head.row, p.head_dim, first, p.s_kv);
        __syncthreads();
        float s[2][T::COLUMNS];
        products<D, B>(q + mine * T::ROW, kv + tx * T::ROW, s);
        __syncthreads();
        fill<D, B>(kv, (const float *)p.v + head.kv, head.row, p.head_dim, first, p.s_kv);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float most = largest[i], total = 0.0f;
#pragma unroll
            for (int j = 0; j < T::COLUMNS; j++) {
                s[i][j] = first + tx + 8 * j < p.s_kv ? s[i][j] * p.scale : -INFINITY;
                most = fmaxf(most, s[i][j]);
            }
            most = row_max(most);
#pragma unroll
            for (int j = 0; j < T::COLUMNS; j++) {
                float w = exp_exact(s[i][j] - most);
                weights[(mine + i) * T::WEIGHTS + tx + 8 * j] = w;
                total += w;
            }
            float kept = exp_exact(largest[i] - most);
            sum[i] = fmaf(sum[i], kept, row_sum(total));
            largest[i] = most;
#pragma unroll
            for (int c = 0; c < T::CHANNELS; c++) o[i][c] = o[i][c] * kept;
        }
        __syncthreads();
        accumulate<D, B>(weights + mine * T::WEIGHTS, kv + 4 * tx, o);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        Len query = from + mine + i;
        if (query >= p.s_q) continue;
        deliver<D>((float *)p.o + head.q, head.row, p.head_dim, query, o[i], 1.0f / sum[i], false);
        if (tx == 0) p.lse[head.queries + query] = largest[i] + logf(sum[i]);
    }
}

ENTRY(attention_forward_32_f32, Attention, 128) { forward<32, 32>(p); }

ENTRY(attention_forward_64_f32, Attention, 128) { forward<64, 32>(p); }

ENTRY(attention_forward_128_f32, Attention, 128, 1) { forward<128, 32>(p); }

ENTRY(attention_forward_256_f32, Attention, 128) { forward<256, 32>(p); }

/// delta[query] = <d_o, o>; a warp a query.
ENTRY(attention_backward_delta_f32, AttentionBackward, 256) {
    Head head(p);
    Len query = (Len)blockIdx.x * 8 + threadIdx.x / 32;
    if (query >= p.s_q) return;
    Len at = head.q + query * head.row;
    const float *o = (const float *)p.o + at, *d_o = (const float *)p.d_o + at;
    float sum = 0.0f;
    for (int d = threadIdx.x % 32; d < p.head_dim; d += 32) sum = fmaf(d_o[d], o[d], sum);
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) p.delta[head.queries + query] = sum;
}

/// Probability and scaled gradient of its score; 0 where there is no such pair.
struct Pair {
    float p, d_s;
    INLINE Pair(bool there, float score, float d_p, float scale, float lse, float delta) {
        p = there ? exp_exact(fmaf(score, scale, -lse)) : 0.0f;
        d_s = p * (d_p - delta) * scale;
    }
};

/// d_q = sum over keys of d_s k.
template <int D, int B> INLINE void backward_query(const AttentionBackward &p) {
    using T = Tiles<D, B>;
    extern __shared__ __align__(16) float shared[];
    float *q = shared, *d_o = q + B * T::ROW, *k = d_o + B * T::ROW, *v = k + B * T::ROW;
    float *weights = v + B * T::ROW;
    Head head(p);
    int tx = threadIdx.x % 8, mine = threadIdx.x / 8 * 2;
    Len from = (Len)blockIdx.x * B;
    fill<D, B>(q, (const float *)p.q + head.q, head.row, p.head_dim, from, p.s_q);
    fill<D, B>(d_o, (const float *)p.d_o + head.q, head.row, p.head_dim, from, p.s_q);
    float lse[2], delta[2], d_q[2][T::CHANNELS] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        Len query = from + mine + i;
        lse[i] = query < p.s_q ? p.lse[head.queries + query] : 0.0f;
        delta[i] = query < p.s_q ? p.delta[head.queries + query] : 0.0f;
    }
    for (Len first = 0; first < p.s_kv; first += B) {
        __syncthreads();
        fill<D, B>(k, (const float *)p.k + head.kv, head.row, p.head_dim, first, p.s_kv);
        fill<D, B>(v, (const float *)p.v + head.kv, head.row, p.head_dim, first, p.s_kv);
        __syncthreads();
        float s[2][T::COLUMNS], d_p[2][T::COLUMNS];
        products<D, B>(q + mine * T::ROW, k + tx * T::ROW, s);
        products<D, B>(d_o + mine * T::ROW, v + tx * T::ROW, d_p);
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int j = 0; j < T::COLUMNS; j++) {
                bool there = first + tx + 8 * j < p.s_kv;
                Pair pair(there, s[i][j], d_p[i][j], p.scale, lse[i], delta[i]);
                weights[(mine + i) * T::WEIGHTS + tx + 8 * j] = pair.d_s;
            }
        }
        __syncwarp(); // a row's weights are its warp's own
        accumulate<D, B>(weights + mine * T::WEIGHTS, k + 4 * tx, d_q);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        Len query = from + mine + i;
        if (query >= p.s_q) continue;
        deliver<D>((float *)p.d_q + head.q, head.row, p.head_dim, query, d_q[i], 1.0f, p.add_q);
    }
}

/// d_k = sum over queries of d_s q, d_v = sum of p d_o.
template <int D, int B> INLINE void backward_key(const AttentionBackward &p) {
    using T = Tiles<D, B>;
    extern __shared__ __align__(16) float shared[];
    float *k = shared, *v = k + B * T::ROW, *q = v + B * T::ROW, *d_o = q + B * T::ROW;
    float *scores = d_o + B * T::ROW, *weights = scores + B * T::WEIGHTS;
    Head head(p);
    int tx = threadIdx.x % 8, mine = threadIdx.x / 8 * 2;
    Len from = (Len)blockIdx.x * B;
    fill<D, B>(k, (const float *)p.k + head.kv, head.row, p.head_dim, from, p.s_kv);
    fill<D, B>(v, (const float *)p.v + head.kv, head.row, p.head_dim, from, p.s_kv);
    float d_k[2][T::CHANNELS] = {}, d_v[2][T::CHANNELS] = {};
    for (Len first = 0; first < p.s_q; first += B) {
        __syncthreads();
        fill<D, B>(q, (const float *)p.q + head.q, head.row, p.head_dim, first, p.s_q);
        fill<D, B>(d_o, (const float *)p.d_o + head.q, head.row, p.head_dim, first, p.s_q);
        __syncthreads();
        float s[2][T::COLUMNS], d_p[2][T::COLUMNS];
        products<D, B>(k + mine * T::ROW, q + tx * T::ROW, s);
        products<D, B>(v + mine * T::ROW, d_o + tx * T::ROW, d_p);
#pragma unroll
        for (int j = 0; j < T::COLUMNS; j++) {
            Len query = first + tx + 8 * j;
            bool there = query < p.s_q;
            float lse = there ? p.lse[head.queries + query] : 0.0f;
            float delta = there ? p.delta[head.queries + query] : 0.0f;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                Pair pair(there, s[i][j], d_p[i][j], p.scale, lse, delta);
                scores[(mine + i) * T::WEIGHTS + tx + 8 * j] = pair.d_s;
                weights[(mine + i) * T::WEIGHTS + tx + 8 * j] = pair.p;
            }
        }
        __syncwarp(); // a row's weights are its warp's own
        accumulate<D, B>(scores + mine * T::WEIGHTS, q + 4 * tx, d_k);
        accumulate<D, B>(weights + mine * T::WEIGHTS, d_o + 4 * tx, d_v);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        Len key = from + mine + i;
        if (key >= p.s_kv) continue;
        if (p.d_k) deliver<D>((float *)p.d_k + head.kv, head.row, p.head_dim, key, d_k[i], 1.0f, p.add_k);
        if (p.d_v) deliver<D>((float *)p.d_v + head.kv, head.row, p.head_dim, key, d_v[i], 1.0f, p.add_v);
    }
}

ENTRY(attention_backward_query_32_f32, AttentionBackward, 128) { backward_query<32, 32>(p); }

ENTRY(attention_backward_query_64_f32, AttentionBackward, 128) { backward_query<64, 32>(p); }

ENTRY(attention_backward_query_128_f32, AttentionBackward, 128) { backward_query<128, 32>(p); }

ENTRY(attention_backward_query_256_f32, AttentionBackward, 64) { backward_query<256, 16>(p); }

ENTRY(attention_backward_key_32_f32, AttentionBackward, 128) { backward_key<32, 32>(p); }

ENTRY(attention_backward_key_64_f32, AttentionBackward, 128) { backward_key<64, 32>(p); }

ENTRY(attention_backward_key_128_f32, AttentionBackward, 128) { backward_key<128, 32>(p); }

ENTRY(attention_backward_key_256_f32, AttentionBackward, 64) { backward_key<256, 16>(p); }
