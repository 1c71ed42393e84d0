// What the kernels of a sampler's stage share: rows of coefficients, the prediction.
#pragma once
#include "half.cuh"
#include "random.cuh"

// Columns of a stage's row, as in ops::sampler_step::column.
enum {
    LABEL = 0,
    INPUT_SLOT = 1,
    INPUT_SCALE = 2,
    X0_STATE = 3,
    X0_PREDICTION = 4,
    EPS_STATE = 5,
    EPS_PREDICTION = 6,
    CLIP = 7,
    DRAW = 8,
    GUIDANCE = 9,
    TARGET = 10,
    OUTPUT = 12,
    COEFFICIENTS = 10,
    OF_X0 = 7,
    OF_EPS = 8,
    OF_NOISE = 9,
    COLUMNS = 32
};

/// The stage a step is at. Whatever the device's memory holds, it is one of the table's.
INLINE Word stage_of(const Word *stage, Word stages) { return min(stage[0], stages - 1); }

/// The number of the slot that a row names, in the same way.
INLINE Word slot_index(const SamplerStep &p, float slot) { return min((Word)slot, p.slot_count - 1); }

/// That slot.
INLINE float *slot_of(const SamplerStep &p, float slot) { return p.slots[slot_index(p, slot)]; }

/// An image's row of a stage.
INLINE const float *row_of(const SamplerStep &p, Word stage, Word image) {
    Len rows = p.per_image ? p.n : 1;
    return p.table + ((Len)stage * rows + (p.per_image ? image : 0)) * COLUMNS;
}

/// The prediction, f32 or bf16, of `count` elements of image `image` of the copies from e on.
template <typename T> INLINE Group predicted(const SamplerStep &p, Len image, Len e, int count) {
    const T *prediction = (const T *)p.prediction + image * p.spatial * p.prediction_channels;
    if (p.channels == p.prediction_channels) return load_four(prediction + e, count);
    // An image has fewer than 2^32 elements.
    Word channel = (Word)e % p.channels;
    prediction += (Word)e / p.channels * p.prediction_channels + channel;
    Group g;
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        g[k] = k < count ? widen(*prediction) : 0.0f;
        prediction++;
        if (++channel == p.channels) {
            channel = 0;
            prediction += p.prediction_channels - p.channels;
        }
    }
    return g;
}

/// The same, guidance applied. The whole warp calls it.
template <typename T> INLINE Group predict(const SamplerStep &p, Len image, Len e, int count, float guidance) {
    Group g = predicted<T>(p, image, e, count);
    if (!p.guided) return g;
    Group u = predicted<T>(p, image + p.n, e, count);
#pragma unroll
    for (int k = 0; k < GROUP; k++) g[k] = u[k] + guidance * (g[k] - u[k]);
    return g;
}

INLINE float clamp(float v, float low, float high) {
    v = v < low ? low : v;
    return v > high ? high : v;
}
