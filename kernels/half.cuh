// bf16 in memory, f32 in registers: what elementwise kernels of either type share.
//
// A thread handles the elements that 16 bytes of its type hold, so that every access
// it makes is one of 128 bits where addresses allow.
#pragma once
#include "common.cuh"
#include <cuda_bf16.h>

using Bf16 = __nv_bfloat16;

/// Elements of T that a thread handles.
template <typename T> constexpr int EACH = 16 / (int)sizeof(T);

/// N floats as an array that stays in registers.
template <int N> struct Pack {
    float v[N];
    INLINE float &operator[](int k) { return v[k]; }
    INLINE float operator[](int k) const { return v[k]; }
};

/// First element of this thread's pack, in a grid along x.
template <int N> INLINE Len pack_start() { return ((Len)blockIdx.x * blockDim.x + threadIdx.x) * N; }

/// Elements of the pack at `i` that exist: 0 to N.
template <int N> INLINE int pack_count(Len i, Len len) {
    Len left = len - i;
    return left >= N ? N : left > 0 ? (int)left : 0;
}

INLINE float widen(float v) { return v; }
INLINE float widen(Bf16 v) { return __bfloat162float(v); }

/// `count` elements from p on, zeros after them.
template <int N> INLINE Pack<N> load(const float *p, int count) {
    Pack<N> x;
    if (count == N && is_aligned(p)) {
#pragma unroll
        for (int k = 0; k < N; k += 4) {
            float4 f = *(const float4 *)(p + k);
            x[k] = f.x, x[k + 1] = f.y, x[k + 2] = f.z, x[k + 3] = f.w;
        }
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = k < count ? p[k] : 0.0f;
    }
    return x;
}

template <int N> INLINE Pack<N> load(const Bf16 *p, int count) {
    static_assert(N == 8, "16 bytes");
    Pack<N> x;
    if (count == N && is_aligned(p)) {
        uint4 bits = *(const uint4 *)p;
        const unsigned word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int k = 0; k < N; k++) {
            unsigned w = word[k / 2];
            x[k] = __uint_as_float(k % 2 ? w & 0xffff0000u : w << 16);
        }
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = k < count ? __bfloat162float(p[k]) : 0.0f;
    }
    return x;
}

/// Writes (or adds, in f32) the first `count` elements to p.
template <int N> INLINE void store(float *p, Pack<N> x, int count, bool add = false) {
    if (add) {
        Pack<N> before = load<N>((const float *)p, count);
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = before[k] + x[k];
    }
    if (count == N && is_aligned(p)) {
#pragma unroll
        for (int k = 0; k < N; k += 4) __stwb((float4 *)(p + k), make_float4(x[k], x[k + 1], x[k + 2], x[k + 3]));
    } else {
#pragma unroll
        for (int k = 0; k < N; k++)
            if (k < count) p[k] = x[k];
    }
}

/// The same, rounded to nearest even.
template <int N> INLINE void store(Bf16 *p, Pack<N> x, int count, bool add = false) {
    static_assert(N == 8, "16 bytes");
    if (add) {
        Pack<N> before = load<N>((const Bf16 *)p, count);
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = before[k] + x[k];
    }
    if (count == N && is_aligned(p)) {
        unsigned word[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * k], x[2 * k + 1]);
            word[k] = *(const unsigned *)&pair;
        }
        __stwb((uint4 *)p, make_uint4(word[0], word[1], word[2], word[3]));
    } else {
#pragma unroll
        for (int k = 0; k < N; k++)
            if (k < count) p[k] = __float2bfloat16_rn(x[k]);
    }
}

/// Four elements a lane of f32 or bf16, of a tensor that others of either type stand
/// beside. Of bf16 those of two lanes go together in one access of 128 bits; the whole warp
/// calls it, and even lanes start at multiples of eight.
INLINE Group load_four(const float *p, int count) { return load(p, count); }

INLINE Group load_four(const Bf16 *p, int count) {
    bool is_second = threadIdx.x & 1;
    int both = count + __shfl_xor_sync(0xffffffffu, count, 1);
    bool together = both == 2 * GROUP && is_aligned(p - (is_second ? GROUP : 0));
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (together && !is_second) bits = *(const uint4 *)p;
    unsigned next[2] = {__shfl_up_sync(0xffffffffu, bits.z, 1), __shfl_up_sync(0xffffffffu, bits.w, 1)};
    if (!together) {
        Group g;
#pragma unroll
        for (int k = 0; k < GROUP; k++) g[k] = k < count ? __bfloat162float(p[k]) : 0.0f;
        return g;
    }
    unsigned low = is_second ? next[0] : bits.x, high = is_second ? next[1] : bits.y;
    return {__uint_as_float(low << 16), __uint_as_float(low & 0xffff0000u), __uint_as_float(high << 16),
            __uint_as_float(high & 0xffff0000u)};
}

/// Writes (or adds, in f32) the first `count` of them.
INLINE void store_four(float *p, Group g, int count, bool add = false) { store(p, g, count, add); }

INLINE void store_four(Bf16 *p, Group g, int count, bool add = false) {
    if (add) {
        Group before = load_four((const Bf16 *)p, count);
#pragma unroll
        for (int k = 0; k < GROUP; k++) g[k] = before[k] + g[k];
    }
    unsigned word[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(g[2 * k], g[2 * k + 1]);
        word[k] = *(const unsigned *)&pair;
    }
    bool is_second = threadIdx.x & 1;
    int both = count + __shfl_xor_sync(0xffffffffu, count, 1);
    unsigned next[2] = {__shfl_down_sync(0xffffffffu, word[0], 1), __shfl_down_sync(0xffffffffu, word[1], 1)};
    if (both == 2 * GROUP && is_aligned(p - (is_second ? GROUP : 0))) {
        if (!is_second) __stwb((uint4 *)p, make_uint4(word[0], word[1], next[0], next[1]));
        return;
    }
#pragma unroll
    for (int k = 0; k < GROUP; k++)
        if (k < count) p[k] = __float2bfloat16_rn(g[k]);
}

/// Writes or adds (in f32) one element.
INLINE void put(Bf16 *p, float v, bool add) { *p = __float2bfloat16_rn(add ? __bfloat162float(*p) + v : v); }
