// Elementwise ops: activations, scaled sums, scaling.
//
// f32 or bf16, any layout; a thread handles four or eight consecutive elements with one
// 128-bit access an operand and computes in f32. No reductions, so bits depend on the
// element alone.
#include "half.cuh"
#include "math.cuh"

template <typename T> INLINE void activate_forward(const Activate &p) {
    constexpr int N = EACH<T>;
    Len i = pack_start<N>();
    int count = pack_count<N>(i, p.len);
    if (count == 0) return;
    Pack<N> x = load<N>((const T *)p.x + i, count), y;
#pragma unroll
    for (int k = 0; k < N; k++) y[k] = activation_value(p.activation, x[k]);
    store((T *)p.y + i, y, count, p.add);
}

ENTRY(activate_forward_f32, Activate, 256) { activate_forward<float>(p); }
ENTRY(activate_forward_bf16, Activate, 256) { activate_forward<Bf16>(p); }

template <typename T> INLINE void activate_backward(const Activate &p) {
    constexpr int N = EACH<T>;
    Len i = pack_start<N>();
    int count = pack_count<N>(i, p.len);
    if (count == 0) return;
    Pack<N> x = load<N>((const T *)p.x + i, count), d_y = load<N>((const T *)p.d_y + i, count), d_x;
#pragma unroll
    for (int k = 0; k < N; k++) d_x[k] = activation_slope(p.activation, x[k]) * d_y[k];
    store((T *)p.y + i, d_x, count, p.add);
}

ENTRY(activate_backward_f32, Activate, 256) { activate_backward<float>(p); }
ENTRY(activate_backward_bf16, Activate, 256) { activate_backward<Bf16>(p); }

template <typename T> INLINE void add(const Add &p) {
    constexpr int N = EACH<T>;
    Len i = pack_start<N>();
    int count = pack_count<N>(i, p.len);
    if (count == 0) return;
    Pack<N> a = load<N>((const T *)p.a + i, count), b = load<N>((const T *)p.b + i, count), y;
#pragma unroll
    for (int k = 0; k < N; k++) y[k] = (a[k] + b[k]) * p.scale;
    store((T *)p.y + i, y, count, p.add);
}

ENTRY(add_f32, Add, 256) { add<float>(p); }
ENTRY(add_bf16, Add, 256) { add<Bf16>(p); }

template <typename T> INLINE void scale(const Scale &p) {
    constexpr int N = EACH<T>;
    Len i = pack_start<N>();
    int count = pack_count<N>(i, p.len);
    if (count == 0) return;
    Pack<N> x = load<N>((const T *)p.x + i, count), y;
    // A copy keeps the bits of -0 and of NaN, which the sum with 0 would not.
    bool copy = p.scale == 1.0f && p.offset == 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) y[k] = copy ? x[k] : fmaf(x[k], p.scale, p.offset);
    store((T *)p.y + i, y, count, p.add);
}

ENTRY(scale_f32, Scale, 256) { scale<float>(p); }
ENTRY(scale_bf16, Scale, 256) { scale<Bf16>(p); }

// Grid: groups of one image along x, images along y.
template <typename T> INLINE void scale_rows(const ScaleRows &p) {
    constexpr int N = EACH<T>;
    Len i = pack_start<N>();
    int count = pack_count<N>(i, p.len);
    if (count == 0) return;
    Len image = blockIdx.y;
    float s = p.s[image * p.columns + p.column];
    Pack<N> x = load<N>((const T *)p.x + image * p.len + i, count), y;
#pragma unroll
    for (int k = 0; k < N; k++) y[k] = p.divide ? x[k] / s : fmaf(x[k], s, 0.0f);
    store((T *)p.y + image * p.len + i, y, count, p.add);
}

ENTRY(scale_rows_f32, ScaleRows, 256) { scale_rows<float>(p); }
ENTRY(scale_rows_bf16, ScaleRows, 256) { scale_rows<Bf16>(p); }
