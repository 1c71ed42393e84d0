// Elementwise ops: activations, scaled sums, scaling.
//
// f32, any layout; a thread handles four consecutive elements with one 128-bit
// access an operand. No reductions, so bits depend on the element alone.
#include "math.cuh"

ENTRY(activate_forward_f32, Activate, 256) {
    Len i = group_start();
    int count = group_count(i, p.len);
    if (count == 0) return;
    Group x = load(p.x + i, count), y;
#pragma unroll
    for (int k = 0; k < GROUP; k++) y[k] = activation_value(p.activation, x[k]);
    store(p.y + i, y, count, p.add);
}

ENTRY(activate_backward_f32, Activate, 256) {
    Len i = group_start();
    int count = group_count(i, p.len);
    if (count == 0) return;
    Group x = load(p.x + i, count), d_y = load(p.d_y + i, count), d_x;
#pragma unroll
    for (int k = 0; k < GROUP; k++) d_x[k] = activation_slope(p.activation, x[k]) * d_y[k];
    store(p.y + i, d_x, count, p.add);
}

ENTRY(add_f32, Add, 256) {
    Len i = group_start();
    int count = group_count(i, p.len);
    if (count == 0) return;
    Group a = load(p.a + i, count), b = load(p.b + i, count), y;
#pragma unroll
    for (int k = 0; k < GROUP; k++) y[k] = (a[k] + b[k]) * p.scale;
    store(p.y + i, y, count, p.add);
}

ENTRY(scale_f32, Scale, 256) {
    Len i = group_start();
    int count = group_count(i, p.len);
    if (count == 0) return;
    Group x = load(p.x + i, count), y;
    // A copy keeps the bits of -0 and of NaN, which the sum with 0 would not.
    bool copy = p.scale == 1.0f && p.offset == 0.0f;
#pragma unroll
    for (int k = 0; k < GROUP; k++) y[k] = copy ? x[k] : fmaf(x[k], p.scale, p.offset);
    store(p.y + i, y, count, p.add);
}

// Grid: groups of one image along x, images along y.
ENTRY(scale_rows_f32, ScaleRows, 256) {
    Len i = group_start();
    int count = group_count(i, p.len);
    if (count == 0) return;
    Len image = blockIdx.y;
    float s = p.s[image * p.columns + p.column];
    Group x = load(p.x + image * p.len + i, count), y;
#pragma unroll
    for (int k = 0; k < GROUP; k++) y[k] = p.divide ? x[k] / s : fmaf(x[k], s, 0.0f);
    store(p.y + image * p.len + i, y, count, p.add);
}
