// One vector an image, added to every position or multiplied with it, and the sums that are
// its gradients.
//
// x: [n, spatial, c], e: [n, c], f32 or bf16, 16 bytes a thread. Forward: elementwise,
// in f32. Sum: a block takes 32 channels of an image. Its rows of threads walk the
// positions in order, each sums fours of them in f32 and these in f64; the rows' sums are
// added in a fixed tree.
#include "half.cuh"

template <typename T> INLINE void add_per_image(const PerImage &p) {
    constexpr int N = EACH<T>;
    Len i = pack_start<N>(), len = p.spatial * p.channels;
    int count = pack_count<N>(i, len);
    if (count == 0) return;
    Len image = blockIdx.y;
    const T *e = (const T *)p.e + image * p.channels;
    Pack<N> y = load<N>((const T *)p.x + image * len + i, count);
    Word c = (Word)(i % p.channels);
    if (p.channels % N == 0) {
        Pack<N> added = load<N>(e + c, N);
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = p.multiply ? y[k] * added[k] : y[k] + added[k];
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) {
            float of_image = k < count ? widen(e[c]) : 0.0f;
            y[k] = p.multiply ? y[k] * of_image : y[k] + of_image;
            c = c + 1 == p.channels ? 0 : c + 1;
        }
    }
    store((T *)p.y + image * len + i, y, count, p.add);
}

ENTRY(add_per_image_f32, PerImage, 256) { add_per_image<float>(p); }
ENTRY(add_per_image_bf16, PerImage, 256) { add_per_image<Bf16>(p); }

template <typename T> INLINE void sum_per_image(const PerImage &p) {
    constexpr int WIDTH = 32, N = EACH<T>, LANES = WIDTH / N, ROWS = 256 / LANES, AT_ONCE = 4;
    __shared__ double sums[256 / 32][WIDTH];
    int lane = threadIdx.x % LANES * N, row = threadIdx.x / LANES;
    Len image = blockIdx.y;
    Word c = blockIdx.x * WIDTH + lane;
    int count = pack_count<N>(c, p.channels);
    double sum[N] = {};
    if (count > 0) {
        Len first = image * p.spatial * p.channels + c;
        // The terms of a position, zeros past the last.
        auto terms = [&](Len s) {
            int there = s < p.spatial ? count : 0;
            Pack<N> x = load<N>((const T *)p.x + first + s * p.channels, there);
            if (p.factor) {
                Pack<N> factor = load<N>((const T *)p.factor + first + s * p.channels, there);
#pragma unroll
                for (int k = 0; k < N; k++) x[k] = x[k] * factor[k];
            }
            return x;
        };
        for (Len s = row; s < p.spatial; s += AT_ONCE * ROWS) {
            Pack<N> part = terms(s);
#pragma unroll
            for (int i = 1; i < AT_ONCE; i++) {
                Pack<N> more = terms(s + i * ROWS);
#pragma unroll
                for (int k = 0; k < N; k++) part[k] += more[k];
            }
#pragma unroll
            for (int k = 0; k < N; k++) sum[k] += (double)part[k];
        }
    }
    // Over the rows of a warp, then over the warps.
#pragma unroll
    for (int k = 0; k < N; k++) {
#pragma unroll
        for (int d = LANES; d < 32; d *= 2) sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], d);
        if (threadIdx.x % 32 < LANES) sums[threadIdx.x / 32][k * LANES + threadIdx.x % 32] = sum[k];
    }
    __syncthreads();
    // Of the channel whose sums lie at this thread's place.
    c = blockIdx.x * WIDTH + threadIdx.x % LANES * N + threadIdx.x / LANES;
    if (threadIdx.x >= WIDTH || c >= p.channels) return;
    double total = sums[0][threadIdx.x];
#pragma unroll
    for (int w = 1; w < 256 / 32; w++) total += sums[w][threadIdx.x];
    put((T *)p.y + image * p.channels + c, (float)total, p.add);
}

ENTRY(sum_per_image_f32, PerImage, 256) { sum_per_image<float>(p); }
ENTRY(sum_per_image_bf16, PerImage, 256) { sum_per_image<Bf16>(p); }
