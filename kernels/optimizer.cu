// Gradient norm, AdamW and the average over whole arenas.
//
// A block takes one chunk of CHUNK elements of a trainable range, chunks being
// numbered through all ranges. Norm: squares in f64, a fixed tree in the block, then
// the chunks' sums in order by one block; so the order depends on the ranges alone.
// AdamW reads and writes each arena once, and the bf16 copy of the parameters with them:
// 38 bytes a parameter.
#include "half.cuh"

/// Elements of a chunk; as the CPU's.
constexpr int CHUNK = 16384;

struct Chunk {
    Len start;
    int len;
};

INLINE Chunk chunk_of(const Ranges &r, Word chunk) {
    Word i = 0;
    while (i + 1 < r.count && chunk >= r.first_chunk[i + 1]) i++;
    Len from = (Len)(chunk - r.first_chunk[i]) * CHUNK, left = r.len[i] - from;
    return {r.start[i] + from, left < CHUNK ? (int)left : CHUNK};
}

ENTRY(square_sums_f32, SquareSums, 256) {
    Word chunk = p.ranges.first_chunk[0] + blockIdx.x;
    Chunk c = chunk_of(p.ranges, chunk);
    double sum = 0.0;
    for (int e = threadIdx.x * GROUP; e < c.len; e += 256 * GROUP) {
        Group g = load(p.gradients + c.start + e, group_count(e, c.len));
#pragma unroll
        for (int k = 0; k < GROUP; k++) sum = fma((double)g[k], (double)g[k], sum);
    }
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) p.sums[chunk] = sum;
}

ENTRY(global_norm_f32, GlobalNorm, 256) {
    double sum = 0.0;
    for (Word i = threadIdx.x; i < p.chunks; i += 256) sum += p.sums[i];
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) p.norm[0] = (float)sqrt(sum);
}

// Columns of the control tensor, as in ops::optimizer::control.
enum { LEARNING_RATE = 0, BIAS_CORRECTION_1 = 1, BIAS_CORRECTION_2 = 2, EMA_RATE = 3 };

/// The factors of one step, rounded once from f64.
struct Factors {
    float gradient, decay, rate1, beta2, rate2, root, eps, step, ema_rate;
};

INLINE Factors factors_of(const AdamW &p) {
    double learning_rate = p.control[LEARNING_RATE];
    double clip = p.clip / ((double)p.norm[0] + 1e-6);
    Factors f;
    f.gradient = (float)(clip < 1.0 ? clip : 1.0);
    f.decay = (float)(learning_rate * p.weight_decay);
    f.rate1 = (float)(1.0 - p.beta1);
    f.beta2 = (float)p.beta2;
    f.rate2 = (float)(1.0 - p.beta2);
    f.root = (float)(1.0 / sqrt((double)p.control[BIAS_CORRECTION_2]));
    f.eps = (float)p.eps;
    f.step = (float)(learning_rate / (double)p.control[BIAS_CORRECTION_1]);
    f.ema_rate = p.control[EMA_RATE];
    return f;
}

ENTRY(adamw_f32, AdamW, 256) {
    // One thread pays for the f64 arithmetic.
    __shared__ Factors shared;
    float norm = p.norm[0];
    if (!isfinite(norm)) return;
    if (threadIdx.x == 0) shared = factors_of(p);
    __syncthreads();
    const Factors f = shared;
    bool near = f.ema_rate < 0.5f;
    Chunk c = chunk_of(p.ranges, p.ranges.first_chunk[0] + blockIdx.x);
    // Whole warps, for what two threads store together.
    int first = threadIdx.x % 32 * GROUP;
    for (int e = threadIdx.x * GROUP; e - first < c.len; e += 256 * GROUP) {
        int count = group_count(e, c.len);
        Len at = c.start + e;
        Group g = load(p.gradients + at, count), w = load(p.parameters + at, count);
        Group m = load(p.first_moments + at, count), v = load(p.second_moments + at, count);
        Group average = load(p.average + at, count);
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            float gk = g[k] * f.gradient;
            m[k] = fmaf(f.rate1, gk - m[k], m[k]);
            v[k] = fmaf(f.beta2, v[k], f.rate2 * gk * gk);
            float slope = m[k] / fmaf(f.root, __fsqrt_rn(v[k]), f.eps);
            // One rounding at the weight's size.
            w[k] = w[k] - fmaf(f.step, slope, f.decay * w[k]);
            // From the nearer end, so that rate 1 copies and rate 0 keeps.
            float difference = w[k] - average[k];
            average[k] = near ? fmaf(f.ema_rate, difference, average[k])
                              : fmaf(f.ema_rate - 1.0f, difference, w[k]);
        }
        store(p.parameters + at, w, count);
        store(p.first_moments + at, m, count);
        store(p.second_moments + at, v, count);
        store(p.average + at, average, count);
        if (p.half) store_four((Bf16 *)p.half + at, w, count);
    }
}
