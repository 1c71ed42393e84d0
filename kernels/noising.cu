// x_t = signal x_0 + std eps, eps drawn in place and never stored; x_0 given, or picked
// from a set of images.
//
// x_t: [n, len] f32 or bf16, x_0: [n, len] f32; the set: bytes or f32. A thread makes the
// four normals of one counter; blocks run over an image along x and over images along y.
// Bits as on the CPU.
#include "half.cuh"
#include "images.cuh"
#include "random.cuh"

// Columns of the coefficients, as in ops::noising::coefficient.
enum { SIGNAL = 0, STD = 1, COLUMNS = 8 };

template <typename T> INLINE void noising(const Noising &p) {
    Len e = group_start(), image = blockIdx.y;
    int count = group_count(e, p.len);
    const float *c = p.coefficients + image * COLUMNS;
    float signal = c[SIGNAL], std = c[STD];
    Group x0 = load_image(p.images, p.len, image, e, count), x_t;
    if (p.x0) store(p.x0 + image * p.len + e, x0, count);
    Group eps = normals(p.keys + image * 4, TRAIN_NOISE, 0, (Word)(e / GROUP));
#pragma unroll
    for (int k = 0; k < GROUP; k++) x_t[k] = fmaf(std, eps[k], signal * x0[k]);
    store_four((T *)p.x_t + image * p.len + e, x_t, count, p.add);
}

ENTRY(noising_f32, Noising, 256, 6) { noising<float>(p); }
ENTRY(noising_bf16, Noising, 256, 6) { noising<Bf16>(p); }
