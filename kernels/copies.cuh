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
INLINE void store16(unsigned to, uint4 v) {
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

/// Elements side by side, brought to shared memory from a multiple of 16 bytes on.
struct Range {
    int from, to;

    /// First element that is brought.
    template <typename T> INLINE int first() const { return from & -CHUNK<T>; }

    /// Elements of room, whole multiples of 16 bytes.
    template <typename T> INLINE int room() const { return (to - first<T>() + CHUNK<T> - 1) & -CHUNK<T>; }

    /// Brings them from a tensor of `len` elements.
    template <typename T, int THREADS> INLINE void bring(unsigned at, const T *tensor, int len) const {
        int first = this->first<T>();
#pragma unroll 1
        for (int i = first + (int)threadIdx.x * CHUNK<T>; i < to; i += THREADS * CHUNK<T>) {
            unsigned slot = at + (i - first) * (int)sizeof(T);
            if (i + CHUNK<T> <= len) {
                copy16(slot, tensor + i, 1u);
            } else {
                for (int e = 0; i + e < len; e++) copy_element(slot + e * (int)sizeof(T), tensor + i + e, true);
            }
        }
    }
};

/// Builds `chunks` chunks of the ROWS rows of a tile from value(row, r, chunk, element of the
/// chunk) for row + r, in place slot(row, chunk). A lane has a word's worth of rows: elements of rows whose
/// pitch is odd then lie in different banks. Every second group of four lanes writes its
/// rows in turned order, so that eight lanes write rows that differ modulo 8.
template <typename T, int ROWS, int THREADS, class Slot, class Value>
INLINE void build_rows(int chunks, Slot slot, Value value) {
    constexpr int EACH = 4 / sizeof(T), OWNERS = ROWS / EACH;
#pragma unroll 1
    for (int i = threadIdx.x; i < OWNERS * chunks; i += THREADS) {
        int chunk = i / OWNERS, row = i % OWNERS * EACH, turned = EACH == 2 && i / 4 % 2;
        __align__(16) T values[EACH][CHUNK<T>];
#pragma unroll
        for (int r = 0; r < EACH; r++)
#pragma unroll
            for (int e = 0; e < CHUNK<T>; e++) values[r][e] = value(row, r, chunk, e);
#pragma unroll
        for (int r = 0; r < EACH; r++) {
            uint4 own = *(const uint4 *)values[r], other = *(const uint4 *)values[EACH - 1 - r];
            store16(slot(row + (r ^ turned), chunk), turned ? other : own);
        }
    }
}

INLINE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING> INLINE void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
