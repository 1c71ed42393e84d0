// Elementary functions with the bits of the CPU backend (src/backend/cpu/math.rs):
// the same IEEE operations in the same order, branch-free.
#pragma once
#include "common.cuh"

/// e^x to about 1 ulp where it is a normal number; 0 below about -87.7, infinity
/// above 88.38, NaN stays NaN. Polynomial of Cephes' expf.
INLINE float exp_exact(float x) {
    constexpr float ROUND = 12582912.0f; // leaves the nearest integer in the low bits
    x = 88.8f < x ? 88.8f : x;
    x = -88.2f > x ? -88.2f : x;
    float shifted = fmaf(x, 1.44269504f, ROUND);
    float k = shifted - ROUND;
    float r = fmaf(k, -0.6933594f, x);
    r = fmaf(k, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return p * __uint_as_float((__float_as_uint(shifted) << 23) + (127u << 23));
}

struct Sigmoid {
    float value, rest; // sigmoid(x), 1 - sigmoid(x), both without cancellation
};

INLINE Sigmoid sigmoid(float x) {
    float e = exp_exact(-fabsf(x));
    float large = 1.0f / (1.0f + e);
    float small = e * large;
    return x < 0.0f ? Sigmoid{small, large} : Sigmoid{large, small};
}

/// Phi(-|x|) (Press et al., Numerical Recipes, erfcc).
INLINE float normal_tail(float x) {
    float z = fabsf(x) * 0.70710678f;
    float t = 1.0f / fmaf(z, 0.5f, 1.0f);
    float p = 0.17087277f;
    p = fmaf(p, t, -0.82215223f);
    p = fmaf(p, t, 1.4885159f);
    p = fmaf(p, t, -1.135204f);
    p = fmaf(p, t, 0.27886807f);
    p = fmaf(p, t, -0.18628806f);
    p = fmaf(p, t, 0.09678418f);
    p = fmaf(p, t, 0.37409196f);
    p = fmaf(p, t, 1.0000237f);
    p = fmaf(p, t, -1.2655122f);
    return 0.5f * t * exp_exact(fmaf(-z, z, p));
}

INLINE float normal_cdf(float x) {
    float tail = normal_tail(x);
    return x < 0.0f ? tail : 1.0f - tail;
}

constexpr float GELU_SCALE = 1.5957691216057308; // sqrt(8 / pi)
constexpr float GELU_CUBIC = 0.044715f;

/// With e = e^x, tanh(ln(1 + e)) = m / (m + 2) for m = e (e + 2).
INLINE float mish_m(float x) {
    float e = exp_exact(x > 20.0f ? 20.0f : x);
    return e * (e + 2.0f);
}

/// f(x) of an ACTIVATION.
INLINE float activation_value(Word activation, float x) {
    switch (activation) {
    case ACTIVATION_SILU: return x / (1.0f + exp_exact(-x));
    case ACTIVATION_GELU: return x * normal_cdf(x);
    case ACTIVATION_GELU_TANH: {
        float u = GELU_SCALE * fmaf(GELU_CUBIC * x * x, x, x);
        return x / (1.0f + exp_exact(-u));
    }
    case ACTIVATION_RELU: return x < 0.0f ? 0.0f : x; // NaN passes
    case ACTIVATION_MISH: {
        float m = mish_m(x);
        return x * (m / (m + 2.0f));
    }
    default: return x;
    }
}

/// f'(x) of an ACTIVATION.
INLINE float activation_slope(Word activation, float x) {
    switch (activation) {
    case ACTIVATION_SILU: {
        Sigmoid s = sigmoid(x);
        return s.value * fmaf(x, s.rest, 1.0f);
    }
    case ACTIVATION_GELU: {
        float density = 0.3989423f * exp_exact(-0.5f * x * x);
        return fmaf(x, density, normal_cdf(x));
    }
    case ACTIVATION_GELU_TANH: {
        // Far out the slope is 0 or 1, and x^3 would overflow.
        x = x > 16.0f ? 16.0f : x;
        x = x < -16.0f ? -16.0f : x;
        float u = GELU_SCALE * fmaf(GELU_CUBIC * x * x, x, x);
        float du = GELU_SCALE * fmaf(3.0f * GELU_CUBIC * x, x, 1.0f);
        Sigmoid s = sigmoid(u);
        return s.value * fmaf(x * du, s.rest, 1.0f);
    }
    case ACTIVATION_RELU: return x > 0.0f ? 1.0f : 0.0f;
    case ACTIVATION_MISH: {
        x = x > 20.0f ? 20.0f : x;
        float m = mish_m(x);
        float q = 1.0f / (m + 2.0f);
        float sech2 = 4.0f * (m + 1.0f) * q * q;
        return fmaf(x * sigmoid(x).value, sech2, m * q);
    }
    default: return 1.0f;
    }
}
