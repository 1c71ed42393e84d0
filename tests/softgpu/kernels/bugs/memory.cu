// Seeded defects of memory and synchronisation. Each kernel takes its defect as a template switch:
// NAME_bug has it, NAME_ok is the corrected twin.
#include <cstdint>

#define TWINS(NAME, PARAMS, ARGS)                                              \
    extern "C" __global__ void NAME##_bug PARAMS { NAME<true> ARGS; }          \
    extern "C" __global__ void NAME##_ok PARAMS { NAME<false> ARGS; }

#define P (int* out, const int* a, int n)
#define A (out, a, n)

template <bool B> __device__ void off_by_one(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (B ? i <= n : i < n) out[i] = a[i < n ? i : 0];
}
TWINS(off_by_one, P, A)

template <bool B> __device__ void read_past_end(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + (B || i + 1 < n ? a[i + 1] : 0);
}
TWINS(read_past_end, P, A)

template <bool B> __device__ void read_before_start(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] - (B || i > 0 ? a[i - 1] : 0);
}
TWINS(read_before_start, P, A)

template <bool B> __device__ void misaligned_vector(int* out, const int* a, int n) {
    int i = threadIdx.x;
    if (i < n / 4 - 1) {
        int4 v = *reinterpret_cast<const int4*>(a + 4 * i + (B ? 1 : 0));
        out[i] = v.x + v.w;
    }
}
TWINS(misaligned_vector, P, A)

template <bool B> __device__ void index_overflow(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long big = 3000000000L + i;
    long at = B ? (long)(int)big : big - 3000000000L;
    out[i] = a[at];
}
TWINS(index_overflow, P, A)

template <bool B> __device__ void null_pointer(int* out, const int* a, int n) {
    const int* p = B && n > 0 ? nullptr : a;
    if (threadIdx.x < n) out[threadIdx.x] = p[threadIdx.x];
}
TWINS(null_pointer, P, A)

// `out` was never written by the host.
template <bool B> __device__ void uninitialised_global(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    if (B) out[i] += a[i];
    else out[i] = a[i];
}
TWINS(uninitialised_global, P, A)

template <bool B> __device__ void uninitialised_shared(int* out, const int* a, int n) {
    __shared__ int s[64];
    int i = threadIdx.x;
    if (!B || i != 13) s[i] = a[i];
    __syncthreads();
    out[i] = s[63 - i];
}
TWINS(uninitialised_shared, P, A)

template <bool B> __device__ void uninitialised_local(int* out, const int* a, int n) {
    int v[8];
    for (int k = 0; k < (B ? 7 : 8); k++) v[(k + a[0]) & 7] = a[k];
    out[threadIdx.x] = v[(a[1] + threadIdx.x) & 7];
}
TWINS(uninitialised_local, P, A)

template <bool B> __device__ void shared_out_of_bounds(int* out, const int* a, int n) {
    __shared__ int s[64];
    __shared__ int other[64];
    int i = threadIdx.x;
    s[i + (B ? 1 : 0)] = a[i];
    other[i] = i;
    __syncthreads();
    out[i] = (B && i == 0 ? 0 : s[i]) + other[63 - i];
}
TWINS(shared_out_of_bounds, P, A)

template <bool B> __device__ void dynamic_shared_too_small(int* out, const int* a, int n) {
    extern __shared__ int pool[];
    int i = threadIdx.x;
    pool[B ? 2 * i : i] = a[i];
    __syncthreads();
    out[i] = pool[B ? 0 : 63 - i];
}
TWINS(dynamic_shared_too_small, P, A)

template <bool B> __device__ void local_out_of_bounds(int* out, const int* a, int n) {
    int v[8];
    for (int k = 0; k < 8; k++) v[(k + a[0]) & 7] = a[k];
    int at = (a[2] & 7) + (B ? n / 8 : 0);
    out[threadIdx.x] = v[at];
}
TWINS(local_out_of_bounds, P, A)

template <bool B> __device__ void missing_barrier(int* out, const int* a, int n) {
    __shared__ int s[64];
    int i = threadIdx.x;
    s[i] = a[i];
    if (!B) __syncthreads();
    out[i] = s[63 - i];
}
TWINS(missing_barrier, P, A)

template <bool B> __device__ void missing_second_barrier(int* out, const int* a, int n) {
    __shared__ int s[64];
    int i = threadIdx.x, sum = 0;
    for (int k = 0; k < 3; k++) {
        s[i] = a[i] + k;
        __syncthreads();
        sum += s[63 - i];
        if (!B) __syncthreads();
    }
    out[i] = sum;
}
TWINS(missing_second_barrier, P, A)

template <bool B> __device__ void missing_syncwarp(int* out, const int* a, int n) {
    __shared__ int s[64];
    int i = threadIdx.x;
    s[i] = a[i];
    if (!B) __syncwarp();
    out[i] = s[i ^ 1];
}
TWINS(missing_syncwarp, P, A)

template <bool B> __device__ void reduction_without_barrier(int* out, const int* a, int n) {
    __shared__ int s[64];
    int i = threadIdx.x;
    s[i] = a[i];
    __syncthreads();
    for (int d = 32; d; d >>= 1) {
        if (i < d) s[i] += s[i + d];
        if (!B) __syncthreads();
    }
    if (i == 0) *out = s[0];
}
TWINS(reduction_without_barrier, P, A)

template <bool B> __device__ void same_slot(int* out, const int* a, int n) {
    __shared__ int s[64];
    int i = threadIdx.x;
    s[B ? i / 2 : i] = a[i];
    __syncthreads();
    out[i] = s[B ? i / 2 : 63 - i];
}
TWINS(same_slot, P, A)

template <bool B> __device__ void plain_counter(int* out, const int* a, int n) {
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    if (a[threadIdx.x] & 1) {
        if (B) count = count + 1;
        else atomicAdd(&count, 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) *out = count;
}
TWINS(plain_counter, P, A)

template <bool B> __device__ void blocks_share_output(int* out, const int* a, int n) {
    int i = blockIdx.x * (B ? blockDim.x - 1 : blockDim.x) + threadIdx.x;
    if (i < n) out[i] = a[i] + blockIdx.x;
}
TWINS(blocks_share_output, P, A)

template <bool B> __device__ void reads_neighbour_block(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = a[i];
    __syncthreads();
    int j = blockIdx.x * blockDim.x + (threadIdx.x + 1) % blockDim.x;
    if (B) j = (i + blockDim.x) % n;
    if (j < n && (B || j == i)) out[i] += out[j];
}
TWINS(reads_neighbour_block, P, A)

template <bool B> __device__ void global_sum(int* out, const int* a, int n) {
    if (blockIdx.x == 0 && threadIdx.x == 0 && n < 0) *out = 0;
    if (threadIdx.x == 0) {
        if (B) *out = *out + a[blockIdx.x];
        else atomicAdd(out, a[blockIdx.x]);
    }
}
TWINS(global_sum, P, A)

// The counter orders nothing without the fence.
template <bool B> __device__ void missing_fence(int* out, const int* a, int n) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        out[1 + blockIdx.x] = a[blockIdx.x];
        if (!B) __threadfence();
        last = atomicAdd(&out[0], 1) == gridDim.x - 1;
        if (last) {
            int s = 0;
            for (int b = 0; b < gridDim.x; b++) s += out[1 + b];
            out[1 + gridDim.x] = s;
        }
    }
}
TWINS(missing_fence, P, A)

// The read-only path does not see this launch's stores.
template <bool B> __device__ void read_only_written(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = a[i];
    out[i] = (B ? __ldg(&out[i]) : out[i]) + 1;
}
TWINS(read_only_written, P, A)

template <bool B> __device__ void one_wait_too_few(int* out, const int* a, int n) {
    __shared__ __align__(16) int s[2][64];
    int i = threadIdx.x;
    for (int k = 0; k < 2; k++) {
        if (i < 16)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(&s[k][4 * i])), "l"(&a[64 * k + 4 * i]));
        asm volatile("cp.async.commit_group;");
    }
    if (B) asm volatile("cp.async.wait_group 1;" ::: "memory");
    else asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    out[i] = s[0][i] + s[1][63 - i];
}
TWINS(one_wait_too_few, P, A)

template <bool B> __device__ void wait_without_barrier(int* out, const int* a, int n) {
    __shared__ __align__(16) int s[64];
    int i = threadIdx.x;
    if (i < 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(&s[4 * i])), "l"(&a[4 * i]));
    asm volatile("cp.async.wait_all;" ::: "memory");
    if (!B) __syncthreads();
    out[i] = s[63 - i];
}
TWINS(wait_without_barrier, P, A)

template <bool B> __device__ void copy_over_readers(int* out, const int* a, int n) {
    __shared__ __align__(16) int s[64];
    int i = threadIdx.x;
    s[i] = a[i];
    __syncthreads();
    int x = s[63 - i];
    if (!B) __syncthreads();
    if (i < 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(&s[4 * i])), "l"(&a[4 * i]));
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    out[i] = x + s[i];
}
TWINS(copy_over_readers, P, A)

template <bool B> __device__ void copy_misaligned(int* out, const int* a, int n) {
    __shared__ __align__(16) int s[80];
    int i = threadIdx.x;
    if (i < 15) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(&s[4 * i])), "l"(&a[4 * i + (B ? 2 : 0)]));
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    if (i < 60) out[i] = s[i];
}
TWINS(copy_misaligned, P, A)

template <bool B> __device__ void atomic_on_uninitialised(int* out, const int* a, int n) {
    __shared__ int bins[8];
    if (!B && threadIdx.x < 8) bins[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&bins[a[threadIdx.x] & 7], 1);
    __syncthreads();
    if (threadIdx.x < 8) out[threadIdx.x] = bins[threadIdx.x];
}
TWINS(atomic_on_uninitialised, P, A)
