// Embeddings of time and class.
//
// Sines and cosines are taken in f64 and rounded once: at t = 1000 an argument in
// f32 would be wrong by 3e-5. A thread a frequency, so both of its waves. Lookup:
// elementwise over the rows. Its backward: a thread a column of one table row, the
// images in order.
#include "common.cuh"

/// sin and cos of the phase of frequency i of image `image`, and the zero that ends
/// an odd row.
INLINE void put_waves(const Waves &p, Len image, Word i, double phase) {
    Word half = p.dim / 2;
    float *y = p.y + image * p.dim;
    if (i < half) {
        double sine, cosine;
        sincos(phase, &sine, &cosine);
        put(y + i + (p.flip ? half : 0), (float)sine, p.add);
        put(y + i + (p.flip ? 0 : half), (float)cosine, p.add);
    } else if (i == half && p.dim % 2 == 1) {
        put(y + p.dim - 1, 0.0f, p.add);
    }
}

ENTRY(sinusoidal_embedding_f32, Waves, 128) {
    Word i = blockIdx.x * 128 + threadIdx.x;
    Len image = blockIdx.y;
    put_waves(p, image, i, (double)p.t[image] * exp(p.step * (double)i));
}

ENTRY(fourier_embedding_f32, Waves, 128) {
    Word i = blockIdx.x * 128 + threadIdx.x;
    if (i >= p.dim / 2) return;
    Len image = blockIdx.y;
    double t = p.t[image];
    t = 6.283185307179586 * (p.log ? log(t) : t);
    put_waves(p, image, i, t * (double)p.w[i]);
}

// An index outside the table writes NaN and is reported.
ENTRY(lookup_forward_f32, Lookup, 256) {
    Len e = group_start();
    int count = group_count(e, p.dim);
    if (count == 0) return;
    Len image = blockIdx.y;
    Word row = p.index[image];
    if (row >= p.rows) {
        if (e == 0) atomicMax(p.bad, (Word)image + 1);
        float nan = __uint_as_float(0x7fffffff);
        store(p.y + image * p.dim + e, {nan, nan, nan, nan}, count);
        return;
    }
    store(p.y + image * p.dim + e, load(p.table + (Len)row * p.dim + e, count), count, p.add);
}

// Grid: columns along x, rows of the table along y.
ENTRY(lookup_backward_f32, Lookup, 128) {
    Word c = blockIdx.x * 128 + threadIdx.x;
    if (c >= p.dim) return;
    float sum = 0.0f;
    float *y = p.y + (Len)blockIdx.y * p.dim + c;
    if (p.add) sum = *y;
    for (Word image = 0; image < p.n; image++) {
        Word row = p.index[image];
        if (row >= p.rows && blockIdx.y == 0 && c == 0) atomicMax(p.bad, image + 1);
        if (row == blockIdx.y) sum += p.table[(Len)image * p.dim + c];
    }
    *y = sum;
}
