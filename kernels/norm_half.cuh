// What norms of bf16 share: channels as they are stored, gain and bias, activations.
#pragma once
#include "math.cuh"
#include "norm.cuh"

/// V channels as they are stored.
template <int V> struct Raw;
template <> struct Raw<8> {
    uint4 bits;
    INLINE Pack<4> quad(int half) const {
        const unsigned low = half ? bits.z : bits.x, high = half ? bits.w : bits.y;
        return {{__uint_as_float(low << 16), __uint_as_float(low & 0xffff0000u), __uint_as_float(high << 16),
                 __uint_as_float(high & 0xffff0000u)}};
    }
    INLINE Pack<8> widened() const {
        Pack<4> a = quad(0), b = quad(1);
        return {{a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]}};
    }
};
template <> struct Raw<1> {
    Bf16 bits;
    INLINE Pack<1> quad(int) const { return widened(); }
    INLINE Pack<1> widened() const { return {{__bfloat162float(bits)}}; }
};

/// Sum over the lanes of a warp; all get it.
INLINE float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

/// A value that a warp reads once.
INLINE float of_lane_0(const float *p) {
    float x = threadIdx.x % 32 == 0 ? *p : 0.0f;
    return __shfl_sync(0xffffffffu, x, 0);
}

/// Gain and bias of an image's channel.
struct Affine {
    float gain, bias;
    template <class P> INLINE Affine(const P &p, Len image, int c) {
        gain = p.gamma ? p.gamma[c] : 1.0f;
        bias = p.beta ? p.beta[c] : 0.0f;
        if (p.scale_shift) {
            const Bf16 *s = (const Bf16 *)p.scale_shift + image * 2 * p.channels + c;
            float scale = 1.0f + __bfloat162float(s[0]);
            gain = gain * scale;
            bias = fmaf(bias, scale, __bfloat162float(s[p.channels]));
        }
    }
};

/// 1 / (1 + e^-x), to a few units in the last place of f32.
INLINE float sigmoid_fast(float x) { return __fdividef(1.0f, 1.0f + exp2f(-1.44269504f * x)); }

/// An ACTIVATION that is known when the kernel runs.
constexpr Word ANY = ~0u;

template <Word ACTIVATION> INLINE float activate(Word activation, float x) {
    if (ACTIVATION == ACTIVATION_SILU) return x * sigmoid_fast(x);
    return ACTIVATION == ANY ? activation_value(activation, x) : x;
}

template <Word ACTIVATION> INLINE float slope(Word activation, float x) {
    if (ACTIVATION == ACTIVATION_SILU) {
        float s = sigmoid_fast(x);
        return s * fmaf(x, 1.0f - s, 1.0f);
    }
    return ACTIVATION == ANY ? activation_slope(activation, x) : 1.0f;
}
