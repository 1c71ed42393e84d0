// What norms of f32 share: gain and bias, sums and statistics.
#pragma once
#include "math.cuh"
#include "norm.cuh"

constexpr int THREADS = 256;
constexpr int SHORT = 16; // terms of an f32 sum

/// Gain and bias of an image's channels from c on.
template <int V, class P>
INLINE void affine(const P &p, Len image, int c, float (&gain)[V], float (&bias)[V]) {
    Pack<V> gamma = {}, beta = {};
    if (p.gamma) gamma = read<V>(p.gamma + c);
    if (p.beta) beta = read<V>(p.beta + c);
#pragma unroll
    for (int k = 0; k < V; k++) {
        gain[k] = p.gamma ? gamma[k] : 1.0f;
        bias[k] = beta[k];
    }
    if (p.scale_shift) {
        const float *s = (const float *)p.scale_shift + image * 2 * p.channels + c;
        Pack<V> scale = read<V>(s), shift = read<V>(s + p.channels);
#pragma unroll
        for (int k = 0; k < V; k++) {
            gain[k] = gain[k] * (1.0f + scale[k]);
            bias[k] = bias[k] * (1.0f + scale[k]) + shift[k];
        }
    }
}

/// Keeps what was read, in shared memory.
template <int V> INLINE void keep(float *to, const Pack<V> &x) {
    if constexpr (V == 4) write_shared_quad(to, x[0], x[1], x[2], x[3]);
    else *to = x[0];
}

/// A sum of many floats: f32 over SHORT terms, f64 over those.
struct Sum {
    float part = 0.0f;
    double total = 0.0;
    INLINE void add(float x) { part += x; }
    INLINE void fold() {
        total += (double)part;
        part = 0.0f;
    }
};

/// Mean, what its rounding lost, and rstd, from the mean distance and mean squared
/// distance to a centre near the mean.
struct Statistics {
    float mean, low, rstd;
    INLINE Statistics(float centre, double first, double second, float eps) {
        double exact = (double)centre + first;
        mean = (float)exact;
        low = (float)(exact - (double)mean);
        double variance = second - first * first;
        rstd = (float)(1.0 / sqrt((variance > 0.0 ? variance : 0.0) + (double)eps));
    }
};
