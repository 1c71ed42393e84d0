// Embeddings of time and class.
//
// Sines and cosines are taken in f64 and rounded once: at t = 1000 an argument in
// f32 would be wrong by 3e-5. A thread a frequency, so both of its waves. Lookup:
// elementwise over the rows. Its backward: a thread a column of one table row, the
// images in order, in f32. Results, and the table that is read, are f32 or bf16; the
// table's gradient is f32.
#include "half.cuh"

/// x / pi but for a multiple of 2, to 2^-50, or as exactly as x is where that is more. 1 / pi
/// is a sum of six numbers, whose products with x, of up to 2^264, are taken exactly, each in
/// two parts. The library's own reduction of an angle keeps an array in local memory.
INLINE double half_turns(double x) {
    constexpr double PARTS[6] = {0.3183098861837907,     -1.9678676675182486e-17, -1.0721436282893004e-33,
                                 8.053563926594112e-50, -1.5602765906819714e-66, 2.8370139311914723e-83};
    auto rest = [](double v) { return v - 2.0 * rint(0.5 * v); };
    auto part = [&](int k) {
        double high = x * PARTS[k];
        return rest(fma(x, PARTS[k], -high)) + rest(high);
    };
    double sum = 0.0;
    if (fabs(x) >= 1099511627776.0) { // 2^40; below it the first two parts do
#pragma unroll
        for (int k = 5; k > 1; k--) sum += part(k);
    }
    return sum + part(1) + part(0);
}

/// sin and cos of the phase of frequency i of image `image`, and the zero that ends
/// an odd row.
template <typename T> INLINE void put_waves(const Waves &p, Len image, Word i, double phase) {
    Word half = p.dim / 2;
    T *y = (T *)p.y + image * p.dim;
    if (i < half) {
        double sine, cosine;
        sincospi(half_turns(phase), &sine, &cosine);
        put(y + i + (p.flip ? half : 0), (float)sine, p.add);
        put(y + i + (p.flip ? 0 : half), (float)cosine, p.add);
    } else if (i == half && p.dim % 2 == 1) {
        put(y + p.dim - 1, 0.0f, p.add);
    }
}

template <typename T> INLINE void sinusoidal_embedding(const Waves &p) {
    Word i = blockIdx.x * 128 + threadIdx.x;
    Len image = blockIdx.y;
    put_waves<T>(p, image, i, (double)p.t[image] * exp(p.step * (double)i));
}

ENTRY(sinusoidal_embedding_f32, Waves, 128) { sinusoidal_embedding<float>(p); }
ENTRY(sinusoidal_embedding_bf16, Waves, 128) { sinusoidal_embedding<Bf16>(p); }

template <typename T> INLINE void fourier_embedding(const Waves &p) {
    Word i = blockIdx.x * 128 + threadIdx.x;
    if (i >= p.dim / 2) return;
    Len image = blockIdx.y;
    double t = p.t[image];
    t = 6.283185307179586 * (p.log ? log(t) : t);
    put_waves<T>(p, image, i, t * (double)p.w[i]);
}

ENTRY(fourier_embedding_f32, Waves, 128) { fourier_embedding<float>(p); }
ENTRY(fourier_embedding_bf16, Waves, 128) { fourier_embedding<Bf16>(p); }

// An index outside the table writes NaN and is reported.
template <typename T> INLINE void lookup_forward(const Lookup &p) {
    constexpr int N = EACH<T>;
    Len e = pack_start<N>();
    int count = pack_count<N>(e, p.dim);
    if (count == 0) return;
    Len image = blockIdx.y;
    Word row = p.index[image];
    if (row >= p.rows) {
        if (e == 0) atomicMax(p.bad, (Word)image + 1);
        Pack<N> nan;
#pragma unroll
        for (int k = 0; k < N; k++) nan[k] = __uint_as_float(0x7fffffff);
        store((T *)p.y + image * p.dim + e, nan, count);
        return;
    }
    Pack<N> x = load<N>((const T *)p.table + (Len)row * p.dim + e, count);
    store((T *)p.y + image * p.dim + e, x, count, p.add);
}

ENTRY(lookup_forward_f32, Lookup, 256) { lookup_forward<float>(p); }
ENTRY(lookup_forward_bf16, Lookup, 256) { lookup_forward<Bf16>(p); }

// Grid: columns along x, rows of the table along y.
template <typename T> INLINE void lookup_backward(const Lookup &p) {
    Word c = blockIdx.x * 128 + threadIdx.x;
    if (c >= p.dim) return;
    float sum = 0.0f;
    float *y = (float *)p.y + (Len)blockIdx.y * p.dim + c;
    if (p.add) sum = *y;
    for (Word image = 0; image < p.n; image++) {
        Word row = p.index[image];
        if (row >= p.rows && blockIdx.y == 0 && c == 0) atomicMax(p.bad, image + 1);
        if (row == blockIdx.y) sum += widen(((const T *)p.table)[(Len)image * p.dim + c]);
    }
    *y = sum;
}

ENTRY(lookup_backward_f32, Lookup, 128) { lookup_backward<float>(p); }
ENTRY(lookup_backward_bf16, Lookup, 128) { lookup_backward<Bf16>(p); }
