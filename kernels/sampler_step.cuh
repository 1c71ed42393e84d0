// What the kernels of a sampler's stage share: rows of coefficients, the prediction.
#pragma once
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

/// The slot that a row names, in the same way.
INLINE float *slot_of(const SamplerStep &p, float slot) {
    return p.slots[min((Word)slot, p.slot_count - 1)];
}

/// An image's row of a stage.
INLINE const float *row_of(const SamplerStep &p, Word stage, Word image) {
    Len rows = p.per_image ? p.n : 1;
    return p.table + ((Len)stage * rows + (p.per_image ? image : 0)) * COLUMNS;
}

/// Element e of an image in one copy of the prediction; an image has fewer than 2^32.
INLINE Len predicted_at(const SamplerStep &p, Len image, Len e) {
    Len len = (Len)p.spatial * p.prediction_channels;
    if (p.channels == p.prediction_channels) return image * len + e;
    Word pixel = (Word)e / p.channels, channel = (Word)e % p.channels;
    return image * len + pixel * p.prediction_channels + channel;
}

/// The prediction of `count` elements from e on, guidance applied.
INLINE Group predict(const SamplerStep &p, Len image, Len e, int count, float guidance) {
    auto gather = [&](Len image) {
        if (p.channels == p.prediction_channels) return load(p.prediction + predicted_at(p, image, e), count);
        Group g;
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            g[k] = k < count ? p.prediction[predicted_at(p, image, e + k)] : 0.0f;
        }
        return g;
    };
    Group conditional = gather(image);
    if (!p.guided) return conditional;
    Group u = gather(image + p.n), g;
#pragma unroll
    for (int k = 0; k < GROUP; k++) g[k] = u[k] + guidance * (conditional[k] - u[k]);
    return g;
}

INLINE float clamp(float v, float low, float high) {
    v = v < low ? low : v;
    return v > high ? high : v;
}
