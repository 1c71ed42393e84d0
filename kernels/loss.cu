// loss[n] = w / len sum (prediction - a x_0 - b eps)^2 and its gradient by the
// prediction; eps is drawn again with the bits that noising used.
//
// prediction, x_0: [n, len] f32. Forward: one block an image; a thread takes every
// 256th counter in order, squares are summed in f64, then over the block in a fixed
// tree. Backward: a thread a counter.
#include "images.cuh"
#include "random.cuh"

// Columns of the coefficients, as in ops::noising::coefficient.
enum { TARGET_X0 = 2, TARGET_NOISE = 3, WEIGHT = 4, COLUMNS = 8 };

/// prediction - (a x_0 + b eps) of the group at e of an image; zeros past its end.
INLINE Group difference(const Loss &p, Len image, Len e, int count) {
    const float *c = p.coefficients + image * COLUMNS;
    Group prediction = load(p.prediction + image * p.len + e, count);
    Group x0 = {0, 0, 0, 0}, eps = {0, 0, 0, 0}, d;
    float a = c[TARGET_X0], b = 0.0f;
    if (a != 0.0f) x0 = load_image(p.images, p.len, image, e, count);
    if (p.keys) {
        b = c[TARGET_NOISE];
        eps = normals(p.keys + image * 4, TRAIN_NOISE, 0, (Word)(e / GROUP));
    }
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        d[k] = k < count ? prediction[k] - fmaf(a, x0[k], b * eps[k]) : 0.0f;
    }
    return d;
}

ENTRY(loss_forward_f32, Loss, 256) {
    Len image = blockIdx.x;
    double sum = 0.0;
    for (Len e = (Len)threadIdx.x * GROUP; e < p.len; e += 256 * GROUP) {
        Group d = difference(p, image, e, group_count(e, p.len));
#pragma unroll
        for (int k = 0; k < GROUP; k++) sum += (double)(d[k] * d[k]);
    }
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) {
        double weight = p.coefficients[image * COLUMNS + WEIGHT];
        put(p.out + image, (float)(weight * sum / (double)p.len), p.add);
    }
}

ENTRY(loss_backward_f32, Loss, 256) {
    Len e = group_start();
    int count = group_count(e, p.len);
    if (count == 0) return;
    Len image = blockIdx.y;
    double weight = 2.0 * (double)p.scale * (double)p.coefficients[image * COLUMNS + WEIGHT];
    float scale = (float)(weight / (double)p.len);
    Group d = difference(p, image, e, count);
#pragma unroll
    for (int k = 0; k < GROUP; k++) d[k] = scale * d[k];
    store(p.out + image * p.len + e, d, count, p.add);
}
