// Seeded defects of warps, barriers and control.
#include <cassert>
#include <cstdint>

template <bool B> __device__ void divergent_barrier(int* out, const int* a, int n) {
    __shared__ int s[64];
    int i = threadIdx.x;
    s[i] = a[i];
    if (B) {
        if (i < 40) __syncthreads();
    } else {
        __syncthreads();
    }
    out[i] = B ? s[i] : s[63 - i];
}
TWINS(divergent_barrier, P, A)

template <bool B> __device__ void barrier_after_return(int* out, const int* a, int n) {
    __shared__ int s[64];
    int i = threadIdx.x;
    if (B && i >= 50) return;
    s[i] = a[i];
    __syncthreads();
    out[i] = s[i / 2];
}
TWINS(barrier_after_return, P, A)

template <bool B> __device__ void two_barriers(int* out, const int* a, int n) {
    __shared__ int s[64];
    int i = threadIdx.x;
    s[i] = a[i];
    if (B && i < 32) asm volatile("bar.sync 1;" ::: "memory");
    else asm volatile("bar.sync 0;" ::: "memory");
    out[i] = s[i];
}
TWINS(two_barriers, P, A)

template <bool B> __device__ void barrier_count(int* out, const int* a, int n) {
    __shared__ int s[64];
    int i = threadIdx.x;
    s[i] = a[i];
    if (B) asm volatile("bar.sync 1, 96;" ::: "memory");
    else asm volatile("bar.sync 1, 64;" ::: "memory");
    out[i] = s[63 - i];
}
TWINS(barrier_count, P, A)

template <bool B> __device__ void shuffle_in_branch(int* out, const int* a, int n) {
    int i = threadIdx.x, x = a[i];
    if (i % 32 < 20) x += __shfl_xor_sync(B ? 0xffffffffu : 0x000fffffu, x, 1);
    out[i] = x;
}
TWINS(shuffle_in_branch, P, A)

template <bool B> __device__ void shuffle_after_exit(int* out, const int* a, int n) {
    int i = threadIdx.x;
    if (i % 32 >= 24) return;
    out[i] = __shfl_down_sync(B ? 0xffffffffu : 0x00ffffffu, a[i], 1, 8);
}
TWINS(shuffle_after_exit, P, A)

template <bool B> __device__ void shuffle_from_absent(int* out, const int* a, int n) {
    int i = threadIdx.x & 31;
    if (i < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, a[i], B ? 20 : 3);
}
TWINS(shuffle_from_absent, P, A)

template <bool B> __device__ void outside_own_mask(int* out, const int* a, int n) {
    int i = threadIdx.x & 31;
    unsigned mask = B ? 0x7fffffffu : 0xffffffffu;
    out[threadIdx.x] = __ballot_sync(mask, a[i] & 1);
}
TWINS(outside_own_mask, P, A)

template <bool B> __device__ void partial_mma(int* out, const int* a, int n) {
    int i = threadIdx.x & 31;
    float d[4] = {0, 0, 0, 0};
    uint32_t x = a[i] & 0x3f803f80;
    if (!B || i < 31)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%4,%4}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(x));
    out[threadIdx.x] = (int)d[0];
}
TWINS(partial_mma, P, A)

// The accumulator is never set. (Left to itself nvcc picks a value for an unset variable, so the
// registers are declared in PTX.)
template <bool B> __device__ void uninitialised_accumulator(int* out, const int* a, int n) {
    float d;
    uint32_t x = a[threadIdx.x & 31] & 0x3f803f80;
    if (B)
        asm volatile("{ .reg .f32 c<4>;\n"
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {c0,c1,c2,c3}, {%1,%1,%1,%1}, {%1,%1}, {c0,c1,c2,c3};\n"
            "add.f32 %0, c0, c3; }" : "=f"(d) : "r"(x));
    else
        asm volatile("{ .reg .f32 c<4>;\n"
            "mov.f32 c0, 0f00000000; mov.f32 c1, c0; mov.f32 c2, c1; mov.f32 c3, c0;\n"
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {c0,c1,c2,c3}, {%1,%1,%1,%1}, {%1,%1}, {c0,c1,c2,c3};\n"
            "add.f32 %0, c0, c3; }" : "=f"(d) : "r"(x));
    out[threadIdx.x] = (int)d;
}
TWINS(uninitialised_accumulator, P, A)

template <bool B> __device__ void uninitialised_register(int* out, const int* a, int n) {
    int r;
    asm volatile("{ .reg .pred p; .reg .b32 t;\n"
        "setp.gt.s32 p, %1, %2;\n"
        "@p mov.b32 t, 7;\n"
        "@!p mov.b32 t, 9;\n"
        "add.s32 %0, t, 1; }" : "=r"(r) : "r"(a[threadIdx.x]), "r"(n));
    if (B)
        asm volatile("{ .reg .pred p; .reg .b32 t;\n"
            "setp.gt.s32 p, %1, 500;\n"
            "@p mov.b32 t, 7;\n"
            "add.s32 %0, t, 1; }" : "=r"(r) : "r"(a[threadIdx.x]));
    out[threadIdx.x] = r;
}
TWINS(uninitialised_register, P, A)

template <bool B> __device__ void ldmatrix_misaligned(int* out, const int* a, int n) {
    __shared__ __align__(16) uint16_t s[8 * 8 + 8];
    int i = threadIdx.x;
    for (int k = i; k < 72; k += 32) s[k] = (uint16_t)a[k & 31];
    __syncthreads();
    uint32_t r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r)
        : "r"((uint32_t)__cvta_generic_to_shared(&s[8 * (i & 7) + (B ? 4 : 0)])));
    out[i] = r;
}
TWINS(ldmatrix_misaligned, P, A)

template <bool B> __device__ void ldmatrix_without_barrier(int* out, const int* a, int n) {
    __shared__ __align__(16) uint16_t s[64];
    int i = threadIdx.x;
    s[i] = (uint16_t)a[i];
    s[i + 32] = (uint16_t)a[31 - i];
    if (!B) __syncthreads();
    uint32_t r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r)
        : "r"((uint32_t)__cvta_generic_to_shared(&s[8 * (i & 7)])) : "memory");
    out[i] = r;
}
TWINS(ldmatrix_without_barrier, P, A)

template <bool B> __device__ void endless(int* out, const int* a, int n) {
    int x = a[threadIdx.x] | 1;
    while (B ? x != 0 : x < 100000) x = B ? (x * 3) | 1 : x * 3;
    out[threadIdx.x] = x;
}
TWINS(endless, P, A)

template <bool B> __device__ void asserts(int* out, const int* a, int n) {
    assert(B ? a[threadIdx.x] < 0 : a[threadIdx.x] >= 0);
    out[threadIdx.x] = a[threadIdx.x];
}
TWINS(asserts, P, A)

template <bool B> __device__ void traps(int* out, const int* a, int n) {
    if (B && a[threadIdx.x] >= 0) __trap();
    out[threadIdx.x] = a[threadIdx.x];
}
TWINS(traps, P, A)

__device__ __noinline__ int depth_of(int x, int k) {
    if (k == 0) return x;
    return depth_of(x * 3 + 1, k - 1) + x;
}

template <bool B> __device__ void endless_recursion(int* out, const int* a, int n) {
    out[threadIdx.x] = depth_of(a[threadIdx.x], B ? 1000 : 5);
}
TWINS(endless_recursion, P, A)
