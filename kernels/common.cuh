// Index helpers, vector loads and reductions that the kernels share.
//
// Every kernel takes one struct of params.h by value. `ENTRY(name, Params, threads)`
// declares it; build.rs reads these lines, so each stands on a line of its own and
// starts it. Blocks have exactly `threads` threads.
#pragma once
#include "params.h"

#define ENTRY(name, Params, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Params p)

#define INLINE __device__ __forceinline__

/// Elements that a thread of an elementwise kernel handles.
constexpr int GROUP = 4;

/// First element of this thread's group, in a grid along x.
INLINE Len group_start() { return ((Len)blockIdx.x * blockDim.x + threadIdx.x) * GROUP; }

/// Elements of the group at `i` that exist: 0 to 4.
INLINE int group_count(Len i, Len len) {
    Len left = len - i;
    return left >= GROUP ? GROUP : left > 0 ? (int)left : 0;
}

/// Four floats as an array that stays in registers.
struct Group {
    float v[GROUP];
    INLINE float &operator[](int k) { return v[k]; }
    INLINE float operator[](int k) const { return v[k]; }
};

INLINE bool is_aligned(const void *p) { return ((unsigned long long)p & 15) == 0; }

/// `count` floats from p on, zeros after them; one access where it can be.
INLINE Group load(const float *p, int count) {
    Group g;
    if (count == GROUP && is_aligned(p)) {
        float4 f = *(const float4 *)p;
        g = {f.x, f.y, f.z, f.w};
    } else {
#pragma unroll
        for (int k = 0; k < GROUP; k++) g[k] = k < count ? p[k] : 0.0f;
    }
    return g;
}

/// Writes (or adds) the first `count` floats to p, in global memory. `__stwb` is an ordinary
/// store that the compiler cannot take apart: of a plain one behind a condition it made four.
INLINE void store(float *p, Group g, int count, bool add = false) {
    if (count == GROUP && is_aligned(p)) {
        if (add) {
            float4 f = *(const float4 *)p;
            g = {f.x + g[0], f.y + g[1], f.z + g[2], f.w + g[3]};
        }
        __stwb((float4 *)p, make_float4(g[0], g[1], g[2], g[3]));
    } else {
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            if (k < count) p[k] = add ? p[k] + g[k] : g[k];
        }
    }
}

/// Writes or adds one float.
INLINE void put(float *p, float v, bool add) { *p = add ? *p + v : v; }

/// Sum of x over the THREADS threads of the block in a fixed tree; all get it.
/// Every thread must call it.
template <int THREADS, typename T> INLINE T block_sum(T x) {
    static_assert((THREADS & (THREADS - 1)) == 0 && THREADS % 32 == 0, "a power of two");
    constexpr int WARPS = THREADS / 32;
    __shared__ T sums[WARPS];
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    T total = sums[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) total += sums[w];
    __syncthreads();
    return total;
}
