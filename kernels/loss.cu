// loss[n] = w / len sum (prediction - a x_0 - b eps)^2 and its gradient by the
// prediction; eps is drawn again with the bits that noising used.
//
// prediction and its gradient: [n, len] f32 or bf16, x_0: [n, len] f32. Forward: one block
// an image; a thread takes every 256th counter in order, squares are summed in f64, then
// over the block in a fixed tree. Backward: a thread a counter.
#include "half.cuh"
#include "images.cuh"
#include "random.cuh"

// Columns of the coefficients, as in ops::noising::coefficient.
enum { TARGET_X0 = 2, TARGET_NOISE = 3, WEIGHT = 4, COLUMNS = 8 };

/// prediction - (a x_0 + b eps) of the group at e of an image; zeros past its end. The whole
/// block calls it.
template <typename T> INLINE Group difference(const Loss &p, Len image, Len e, int count) {
    const float *c = p.coefficients + image * COLUMNS;
    Group x0 = {0, 0, 0, 0}, eps = {0, 0, 0, 0}, d;
    float a = c[TARGET_X0], b = 0.0f;
    if (a != 0.0f) x0 = load_image(p.images, p.len, image, e, count);
    if (p.keys) {
        b = c[TARGET_NOISE];
        eps = normals(p.keys + image * 4, TRAIN_NOISE, 0, (Word)(e / GROUP));
    }
    Group prediction = load_four((const T *)p.prediction + image * p.len + e, count);
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        d[k] = k < count ? prediction[k] - fmaf(a, x0[k], b * eps[k]) : 0.0f;
    }
    return d;
}

template <typename T> INLINE void loss_forward(const Loss &p) {
    Len image = blockIdx.x;
    double sum = 0.0;
    for (Len first = 0; first < p.len; first += 256 * GROUP) {
        Len e = first + threadIdx.x * GROUP;
        Group d = difference<T>(p, image, e, group_count(e, p.len));
#pragma unroll
        for (int k = 0; k < GROUP; k++) sum += (double)(d[k] * d[k]);
    }
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) {
        double weight = p.coefficients[image * COLUMNS + WEIGHT];
        put((float *)p.out + image, (float)(weight * sum / (double)p.len), p.add);
    }
}

ENTRY(loss_forward_f32, Loss, 256, 4) { loss_forward<float>(p); }
ENTRY(loss_forward_bf16, Loss, 256, 4) { loss_forward<Bf16>(p); }

template <typename T> INLINE void loss_backward(const Loss &p) {
    Len e = group_start(), image = blockIdx.y;
    int count = group_count(e, p.len);
    Group d = difference<T>(p, image, e, count);
    double weight = 2.0 * (double)p.scale * (double)p.coefficients[image * COLUMNS + WEIGHT];
    float scale = (float)(weight / (double)p.len);
#pragma unroll
    for (int k = 0; k < GROUP; k++) d[k] = scale * d[k];
    store_four((T *)p.out + image * p.len + e, d, count, p.add);
}

ENTRY(loss_backward_f32, Loss, 256, 6) { loss_backward<float>(p); }
ENTRY(loss_backward_bf16, Loss, 256, 6) { loss_backward<Bf16>(p); }
