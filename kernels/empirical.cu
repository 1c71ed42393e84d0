// y = sum_i w_i x_i, w = softmax_i(-|x - alpha x_i|^2 / (2 sigma^2)): the optimal
// denoiser of a finite data set, and d_x = alpha / sigma^2 sum_i c_i (x_i - y) with
// c_i = w_i (x_i - y) . d_y; see src/ops/empirical.rs.
//
// x, y: [n, len], data: [m, len], std, signal: [n], log_sum: [n, 2]; f32. The shape is
// attention's, with the data as keys and values: a block takes STATES states through
// one chunk of the data in tiles of IMAGES, the softmax carried along, and nothing of
// size n x m is stored. A warp owns two states and a lane two images of a tile, of
// which a slice of SLICE elements at a time lies in shared memory. Distances are sums
// of squared differences, in f32 within a slice and in f64 over slices; exponents are
// differences in f64. Weighted sums stand in scratch, a thread an element for all
// states; images that weigh nothing are passed over, for most noises most of them.
// Chunks follow from m alone and the last pass combines them in order, so a state's
// bits depend neither on the states beside it nor on the order of blocks.
#include "math.cuh"

constexpr int THREADS = 256;
constexpr int STATES = 16;      // of a block: two a warp
constexpr int IMAGES = 64;      // of a tile: two a lane
constexpr int SLICE = 64;       // elements in shared memory
constexpr int ROW = SLICE + 4;  // floats: rows of neighbouring lanes in other banks
constexpr int MOST_CHUNKS = 64; // as in backend/cuda/empirical.rs

constexpr double INFINITE = (double)INFINITY;

/// 1 / (2 sigma^2), infinite at sigma = 0.
INLINE double precision(const Empirical &p, Len state) {
    double std = (double)p.std[state];
    return 0.5 / (std * std);
}

INLINE float signal(const Empirical &p, Len state) { return p.signal ? p.signal[state] : 1.0f; }

/// `difference / (2 sigma^2)` of squared distances; 0 for equal ones also at sigma = 0.
INLINE double exponent(double difference, double precision) {
    return difference == 0.0 ? 0.0 : difference * precision;
}

/// Copies a slice of `count` rows from row `first` on; zeros outside.
INLINE void fill(float *tile, int rows, const float *from, Len first, int count, Len e, Len len) {
    for (int i = threadIdx.x; i < rows * (SLICE / GROUP); i += THREADS) {
        int row = i / (SLICE / GROUP), at = i % (SLICE / GROUP) * GROUP;
        Group g = {0.0f, 0.0f, 0.0f, 0.0f};
        if (row < count) {
            g = load(from + (first + row) * len + e + at, group_count(e + at, len));
        }
        *(float4 *)(tile + row * ROW + at) = make_float4(g[0], g[1], g[2], g[3]);
    }
}

INLINE double warp_min(double x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        double other = __shfl_xor_sync(0xffffffffu, x, d);
        x = other < x ? other : x;
    }
    return x;
}

INLINE double warp_sum(double x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

/// Squared distances of a warp's two states to a lane's two images, and backward the
/// products (image - y) . d_y.
struct Pairs {
    double distance[2][2], product[2][2];
};

template <bool BACKWARD>
INLINE Pairs pairs(const Empirical &p, float (*states)[STATES * ROW], float *tile, Len first,
                   int count, Len from, int images, const float (&signals)[2]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Pairs total = {};
    for (Len e = 0; e < p.len; e += SLICE) {
        __syncthreads();
        fill(states[0], STATES, p.x, first, count, e, p.len);
        if (BACKWARD) {
            fill(states[1], STATES, p.y, first, count, e, p.len);
            fill(states[2], STATES, p.d_y, first, count, e, p.len);
        }
        fill(tile, IMAGES, p.data, from, images, e, p.len);
        __syncthreads();
        float squares[2][2] = {}, products[2][2] = {};
        int end = (int)min((Len)SLICE, p.len - e);
        for (int at = 0; at < end; at += GROUP) {
            Group image[2];
#pragma unroll
            for (int j = 0; j < 2; j++) image[j] = load(tile + (lane + 32 * j) * ROW + at, GROUP);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int row = (2 * warp + i) * ROW + at;
                Group x = load(states[0] + row, GROUP), y, d_y;
                if (BACKWARD) {
                    y = load(states[1] + row, GROUP);
                    d_y = load(states[2] + row, GROUP);
                }
#pragma unroll
                for (int j = 0; j < 2; j++) {
#pragma unroll
                    for (int k = 0; k < GROUP; k++) {
                        float difference = fmaf(-signals[i], image[j][k], x[k]);
                        squares[i][j] = fmaf(difference, difference, squares[i][j]);
                        if (BACKWARD) {
                            products[i][j] = fmaf(image[j][k] - y[k], d_y[k], products[i][j]);
                        }
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                total.distance[i][j] += (double)squares[i][j];
                if (BACKWARD) total.product[i][j] += (double)products[i][j];
            }
        }
    }
    return total;
}

/// `sums = factor sums + sum_j weights[j] data[j]` of the block's states, j in order
/// over the images of the mask; at the first tile of a chunk `sums` is not read.
INLINE void accumulate(const Empirical &p, float (*weights)[STATES], const float *factors,
                       unsigned long long mask, Len from, float *sums, int count, bool is_first) {
    for (Len e = threadIdx.x; e < p.len; e += THREADS) {
        float added[STATES] = {};
        for (unsigned long long left = mask; left; left &= left - 1) {
            int j = __ffsll((long long)left) - 1;
            float image = p.data[(from + j) * p.len + e];
#pragma unroll
            for (int i = 0; i < STATES; i++) added[i] = fmaf(weights[j][i], image, added[i]);
        }
#pragma unroll
        for (int i = 0; i < STATES; i++) {
            if (i < count) {
                float *sum = sums + i * p.len + e;
                *sum = is_first ? added[i] : fmaf(*sum, factors[i], added[i]);
            }
        }
    }
}

/// Takes the block's states (blockIdx.y) through a chunk (blockIdx.x). Statistics of a
/// state: the nearest squared distance and the sum of weights relative to it;
/// backward the sum of c.
template <bool BACKWARD> INLINE void stream(const Empirical &p) {
    __shared__ __align__(16) float states[BACKWARD ? 3 : 1][STATES * ROW];
    __shared__ __align__(16) float tile[IMAGES * ROW];
    __shared__ __align__(16) float weights[IMAGES][STATES];
    __shared__ float factors[STATES];
    __shared__ Word masks[THREADS / 32][2];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Len chunk = blockIdx.x, first = (Len)blockIdx.y * STATES;
    Len start = p.m * chunk / p.chunks, end = p.m * (chunk + 1) / p.chunks;
    int count = (int)min((Len)STATES, p.n - first);
    float signals[2];
    double precisions[2], log_sum[2] = {}, statistics[2][2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        bool there = 2 * warp + i < count;
        Len state = first + 2 * warp + i;
        signals[i] = there ? signal(p, state) : 0.0f;
        precisions[i] = there ? precision(p, state) : 0.0;
        if (BACKWARD && there) {
            log_sum[i] = (double)p.log_sum[2 * state] + (double)p.log_sum[2 * state + 1];
        }
        statistics[i][0] = BACKWARD ? 0.0 : INFINITE;
        statistics[i][1] = 0.0;
    }
    float *sums = p.sums + (chunk * p.n + first) * p.len;
    for (Len from = start; from < end; from += IMAGES) {
        int images = (int)min((Len)IMAGES, end - from);
        Pairs found = pairs<BACKWARD>(p, states, tile, first, count, from, images, signals);
        bool heavy[2] = {false, false}, rescaled = false;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            bool mine = 2 * warp + i < count, there[2];
            float weight[2] = {0.0f, 0.0f}, factor = 1.0f;
#pragma unroll
            for (int j = 0; j < 2; j++) there[j] = mine && lane + 32 * j < images;
            if (BACKWARD) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    if (there[j]) {
                        double e = exponent(found.distance[i][j], precisions[i]) + log_sum[i];
                        float w = exp_exact((float)-e);
                        // Where w is 0 the product, however large, is not asked.
                        weight[j] = w == 0.0f ? 0.0f : w * (float)found.product[i][j];
                    }
                }
                statistics[i][0] += warp_sum((double)weight[0] + (double)weight[1]);
            } else {
                double before = statistics[i][0], now = before;
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    double d = found.distance[i][j];
                    now = there[j] && d < now ? d : now;
                }
                now = warp_min(now);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    if (there[j]) {
                        double e = exponent(found.distance[i][j] - now, precisions[i]);
                        weight[j] = exp_exact((float)-e);
                    }
                }
                factor = 0.0f;
                if (before != INFINITE) {
                    factor = exp_exact((float)-exponent(before - now, precisions[i]));
                }
                double added = warp_sum((double)weight[0] + (double)weight[1]);
                statistics[i][0] = now;
                statistics[i][1] = statistics[i][1] * (double)factor + added;
            }
            rescaled |= mine && factor != 1.0f;
            if (lane == 0) factors[2 * warp + i] = factor;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                weights[lane + 32 * j][2 * warp + i] = weight[j];
                heavy[j] |= weight[j] != 0.0f;
            }
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
            Word mask = __ballot_sync(0xffffffffu, heavy[j]);
            if (lane == 0) masks[warp][j] = mask;
        }
        // Also the barrier between the weights' writers and their readers.
        bool any = __syncthreads_or(heavy[0] || heavy[1] || rescaled || from == start);
        if (any) {
            unsigned long long mask = 0;
#pragma unroll
            for (int w = 0; w < THREADS / 32; w++) {
                mask |= (unsigned long long)masks[w][1] << 32 | masks[w][0];
            }
            accumulate(p, weights, factors, mask, from, sums, count, from == start);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (lane == 0 && 2 * warp + i < count) {
            double *to = p.statistics + 2 * (chunk * p.n + first + 2 * warp + i);
            to[0] = statistics[i][0];
            to[1] = statistics[i][1];
        }
    }
}

ENTRY(empirical_forward_stream_f32, Empirical, 256, 3) { stream<false>(p); }

ENTRY(empirical_backward_stream_f32, Empirical, 256, 2) { stream<true>(p); }

/// `out = sum_c factors[c] sums[c] + rest y`, in this order, of four elements of
/// the state blockIdx.y.
INLINE void combine(const Empirical &p, const float *factors, const float *y, float rest) {
    Len e = group_start(), state = blockIdx.y;
    int count = group_count(e, p.len);
    if (count == 0) return;
    Group sum = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int c = 0; c < p.chunks; c++) {
        Group part = load(p.sums + (c * p.n + state) * p.len + e, count);
#pragma unroll
        for (int k = 0; k < GROUP; k++) sum[k] = fmaf(factors[c], part[k], sum[k]);
    }
    if (y) {
        Group mean = load(y + state * p.len + e, count);
#pragma unroll
        for (int k = 0; k < GROUP; k++) sum[k] = fmaf(rest, mean[k], sum[k]);
    }
    store(p.out + state * p.len + e, sum, count, p.add);
}

ENTRY(empirical_forward_combine_f32, Empirical, 256) {
    __shared__ double relative[MOST_CHUNKS];
    __shared__ float factors[MOST_CHUNKS];
    Len state = blockIdx.y;
    double scale = precision(p, state), nearest = INFINITE;
    auto statistics = [&](Len c) { return p.statistics + 2 * (c * p.n + state); };
    for (int c = 0; c < p.chunks; c++) {
        double d = statistics(c)[0];
        nearest = d < nearest ? d : nearest;
    }
    int mine = threadIdx.x;
    if (mine < p.chunks) relative[mine] = exp(-exponent(statistics(mine)[0] - nearest, scale));
    __syncthreads();
    double total = 0.0;
    for (int c = 0; c < p.chunks; c++) total += relative[c] * statistics(c)[1];
    if (mine < p.chunks) factors[mine] = (float)(relative[mine] / total);
    __syncthreads();
    if (mine == 0 && blockIdx.x == 0) {
        double sum = log(total) - exponent(nearest, scale);
        p.log_sum[2 * state] = (float)sum;
        p.log_sum[2 * state + 1] = (float)(sum - (double)(float)sum);
    }
    combine(p, factors, nullptr, 0.0f);
}

ENTRY(empirical_backward_combine_f32, Empirical, 256) {
    __shared__ float factors[MOST_CHUNKS];
    Len state = blockIdx.y;
    double factor = 2.0 * precision(p, state) * (double)signal(p, state), total = 0.0;
    // The sum of c is 0 but for rounding, which the factor magnifies.
    for (int c = 0; c < p.chunks; c++) total += p.statistics[2 * (c * p.n + state)];
    if (threadIdx.x < p.chunks) factors[threadIdx.x] = (float)factor;
    __syncthreads();
    combine(p, factors, p.y, (float)(-factor * total));
}
