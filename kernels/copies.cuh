// Copies to shared memory, and where what is copied lies there.
#pragma once
#include "common.cuh"
#include <cuda_bf16.h>

using Bf16 = __nv_bfloat16;

/// Bytes of a row of a tile, along the reduction.
constexpr int ROW_BYTES = 128;

/// Elements of a row of a tile, and of 16 bytes.
template <typename T> constexpr int DEPTH = ROW_BYTES / sizeof(T);
template <typename T> constexpr int CHUNK = 16 / sizeof(T);

INLINE unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

/// Keeps the compiler from computing a value again at each use.
INLINE void keep(unsigned &v) { asm volatile("" : "+r"(v)); }
INLINE void keep(int &v) { asm volatile("" : "+r"(v)); }
INLINE void keep(const char *&v) { asm volatile("" : "+l"(v)); }

/// Copies 16 bytes to shared memory where some bit of `inside` is set, else zeros.
INLINE void copy16(unsigned to, const void *from, unsigned inside) {
    asm volatile("{ .reg .pred ignore; setp.eq.u32 ignore, %2, 0;"
                 " cp.async.cg.shared.global [%0], [%1], 16, ignore; }" ::"r"(to),
                 "l"(from), "r"(inside)
                 : "memory");
}

/// Copies 16 bytes to shared memory, but zeros where `value` < `least` or `never`.
INLINE void copy16_from(unsigned to, const void *from, int value, int least, bool never) {
    asm volatile("{ .reg .pred ignore, all; setp.ne.u32 all, %4, 0; setp.lt.or.s32 ignore, %2, %3, all;"
                 " cp.async.cg.shared.global [%0], [%1], 16, ignore; }" ::"r"(to),
                 "l"(from), "r"(value), "r"(least), "r"((unsigned)never)
                 : "memory");
}

/// Copies 4 bytes to shared memory, or zeros.
INLINE void copy4(unsigned to, const void *from, bool inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
                 "r"(inside ? 4 : 0)
                 : "memory");
}

/// One element, at once: for tensors in which 4 bytes straddle pixels.
INLINE void copy_element(unsigned to, const Bf16 *from, bool inside) {
    unsigned short bits = inside ? *(const unsigned short *)from : 0;
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(bits) : "memory");
}
INLINE void copy_element(unsigned to, const float *from, bool inside) { copy4(to, from, inside); }

/// Writes 16 bytes to shared memory.
template <typename T> INLINE void store16(unsigned to, const T (&values)[CHUNK<T>]) {
    uint4 v = *(const uint4 *)values;
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

/// How rows of [k][row] tiles are permuted, in chunks of 16 bytes, so that the lanes that
/// read together meet different banks: not at all for whole rows at once (f32), eight rows
/// k of one chunk (ldmatrix on bf16), or four rows of two chunks (tf32 by words).
enum Order { PLAIN, EIGHT_ROWS, FOUR_ROWS };

/// Where chunk c of row k lies, in a tile whose rows have CHUNKS.
template <Order ORDER, int CHUNKS> __host__ __device__ __forceinline__ constexpr int place(int k, int c) {
    if (ORDER == PLAIN) return c;
    if (ORDER == FOUR_ROWS) return c ^ (CHUNKS >= 8 ? k & 3 : k / 2 & 1) << 1;
    return c ^ (CHUNKS >= 8 ? k & 7 : k / (8 / CHUNKS) & (CHUNKS - 1));
}

INLINE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING> INLINE void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
