// One vector an image, added to every position, and the sum that is its gradient.
//
// x: [n, spatial, c], e: [n, c], f32 or bf16. Forward: elementwise, 16 bytes a thread,
// added in f32. Sum: a block takes 32 channels of an image; 8 rows of threads walk the positions
// in order, each sums every 8th in f64, then the rows' sums are added in order.
#include "half.cuh"

template <typename T> INLINE void add_per_image(const PerImage &p) {
    constexpr int N = EACH<T>;
    Len i = pack_start<N>(), len = p.spatial * p.channels;
    int count = pack_count<N>(i, len);
    if (count == 0) return;
    Len image = blockIdx.y;
    const T *e = (const T *)p.e + image * p.channels;
    Pack<N> x = load<N>((const T *)p.x + image * len + i, count), y;
    Word c = (Word)(i % p.channels);
#pragma unroll
    for (int k = 0; k < N; k++) {
        y[k] = k < count ? x[k] + widen(e[c]) : 0.0f;
        c = c + 1 == p.channels ? 0 : c + 1;
    }
    store((T *)p.y + image * len + i, y, count, p.add);
}

ENTRY(add_per_image_f32, PerImage, 256) { add_per_image<float>(p); }
ENTRY(add_per_image_bf16, PerImage, 256) { add_per_image<Bf16>(p); }

template <typename T> INLINE void sum_per_image(const PerImage &p) {
    constexpr int WIDTH = 32, ROWS = 8;
    __shared__ double sums[ROWS][WIDTH];
    int lane = threadIdx.x % WIDTH, row = threadIdx.x / WIDTH;
    Len image = blockIdx.y;
    Word c = blockIdx.x * WIDTH + lane;
    double sum = 0.0;
    if (c < p.channels) {
        const T *x = (const T *)p.x + image * p.spatial * p.channels + c;
        for (Len s = row; s < p.spatial; s += ROWS) sum += (double)widen(x[s * p.channels]);
    }
    sums[row][lane] = sum;
    __syncthreads();
    if (row > 0 || c >= p.channels) return;
#pragma unroll
    for (int r = 1; r < ROWS; r++) sum += sums[r][lane];
    put((T *)p.y + image * p.channels + c, (float)sum, p.add);
}

ENTRY(sum_per_image_f32, PerImage, 256) { sum_per_image<float>(p); }
ENTRY(sum_per_image_bf16, PerImage, 256) { sum_per_image<Bf16>(p); }
