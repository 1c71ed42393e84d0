// One vector an image, added to every position, and the sum that is its gradient.
//
// x: [n, spatial, c], e: [n, c], f32. Forward: elementwise, four channels a thread.
// Sum: a block takes 32 channels of an image; 8 rows of threads walk the positions
// in order, each sums every 8th in f64, then the rows' sums are added in order.
#include "common.cuh"

ENTRY(add_per_image_f32, PerImage, 256) {
    Len i = group_start(), len = p.spatial * p.channels;
    int count = group_count(i, len);
    if (count == 0) return;
    Len image = blockIdx.y;
    const float *e = p.e + image * p.channels;
    Group x = load(p.x + image * len + i, count), y;
    Word c = (Word)(i % p.channels);
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        y[k] = k < count ? x[k] + e[c] : 0.0f;
        c = c + 1 == p.channels ? 0 : c + 1;
    }
    store(p.y + image * len + i, y, count, p.add);
}

ENTRY(sum_per_image_f32, PerImage, 256) {
    constexpr int WIDTH = 32, ROWS = 8;
    __shared__ double sums[ROWS][WIDTH];
    int lane = threadIdx.x % WIDTH, row = threadIdx.x / WIDTH;
    Len image = blockIdx.y;
    Word c = blockIdx.x * WIDTH + lane;
    double sum = 0.0;
    if (c < p.channels) {
        const float *x = p.x + image * p.spatial * p.channels + c;
        for (Len s = row; s < p.spatial; s += ROWS) sum += (double)x[s * p.channels];
    }
    sums[row][lane] = sum;
    __syncthreads();
    if (row > 0 || c >= p.channels) return;
#pragma unroll
    for (int r = 1; r < ROWS; r++) sum += sums[r][lane];
    put(p.y + image * p.channels + c, (float)sum, p.add);
}
