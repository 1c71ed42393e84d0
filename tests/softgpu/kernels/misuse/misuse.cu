// Misuse of tensor cores, asynchronous copies, collectives and ordering, in pairs of kernels: NAME_bug
// has one defect, NAME_fixed is its twin without it. All take the same arguments: out, n ints never
// written; in, n ints that count up from 0; n = 256.
#include <cstdint>

#define CASE(NAME)                                                                                 \
    template <bool BUG> __device__ __forceinline__ void NAME(int* out, int* in, int n);            \
    extern "C" __global__ void NAME##_bug(int* out, int* in, int n) { NAME<true>(out, in, n); }    \
    extern "C" __global__ void NAME##_fixed(int* out, int* in, int n) { NAME<false>(out, in, n); } \
    template <bool BUG> __device__ __forceinline__ void NAME(int* out, int* in, int n)

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void copy_16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void copy_16(void* to, const void* from, int size) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(size)
                 : "memory");
}

__device__ __forceinline__ void commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> __device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- bounds ----

// ---- alignment ----

// ---- bounds and alignment ----

CASE(misaligned_atomic) {
    atomicAdd(reinterpret_cast<unsigned long long*>(in + (BUG ? 1 : 2)), 1ull);
}

CASE(shared_atomic_past_end) {
    __shared__ int bins[8];
    int i = threadIdx.x;
    if (i < 8) bins[i] = 0;
    __syncthreads();
    atomicAdd(&bins[in[i] & (BUG ? 15 : 7)], 1);
    __syncthreads();
    if (i < 8) out[i] = bins[i];
}

__constant__ int constant_table[8] = {1, 2, 3, 4, 5, 6, 7, 8};

CASE(constant_past_end) {
    int i = threadIdx.x;
    out[i] = constant_table[i & (BUG ? 15 : 7)];
}

__device__ int module_table[8] = {1, 2, 3, 4, 5, 6, 7, 8};

CASE(module_variable_past_end) {
    int i = threadIdx.x;
    out[i] = module_table[i & (BUG ? 15 : 7)];
}

// ---- never written ----

#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "

// Fragment register r of A holds columns 2t + 8(r >> 1); the padding past column 16 holds nothing.
CASE(wrong_fragment_index) {
    __shared__ __align__(16) uint16_t a[16][24];
    int i = threadIdx.x, g = i >> 2, t = i & 3;
    for (int k = i; k < 256; k += 32) a[k >> 4][k & 15] = 0x3c00;
    __syncwarp();
    uint32_t r[4];
    for (int k = 0; k < 4; k++) {
        int column = 2 * t + (BUG ? 16 : 8) * (k >> 1);
        r[k] = *reinterpret_cast<uint32_t*>(&a[g + 8 * (k & 1)][column]);
    }
    float c[4] = {};
    asm volatile(MMA "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%8}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(0x3c003c00));
    out[i] = (int)(c[0] + c[1] + c[2] + c[3]);
}

CASE(ldmatrix_rows_never_written) {
    __shared__ __align__(16) int s[64];
    int i = threadIdx.x;
    s[i] = in[i];
    if (!BUG) s[i + 32] = in[i];
    __syncwarp();
    int r0, r1;
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r0), "=r"(r1) : "r"(shared_address(s) + 16 * (i & 15)) : "memory");
    out[i] = r0 + r1;
    if (n == 0) s[i + 32] = 0;
}

CASE(counter_never_cleared) {
    if (!BUG && threadIdx.x == 0) out[0] = 0;
    __syncthreads();
    atomicAdd(&out[0], in[threadIdx.x]);
}

// Shared memory does not outlive its block.
CASE(shared_kept_between_blocks) {
    __shared__ int s[64];
    int i = threadIdx.x;
    if (!BUG || blockIdx.x == 0) s[i] = in[i];
    __syncthreads();
    out[64 * blockIdx.x + i] = s[63 - i];
}

CASE(shuffle_of_unwritten_register) {
    int r;
    asm volatile("{ .reg .pred p; .reg .b32 t; setp.lt.s32 p, %1, 16; @p mov.b32 t, %1; "
                 "@p shfl.sync.idx.b32 %0, t, %2, 31, 0xffff; @!p mov.b32 %0, 0; }"
                 : "=r"(r) : "r"(in[threadIdx.x]), "r"((in[threadIdx.x] + 1) & 15));
    if (BUG)
        asm volatile("{ .reg .pred p; .reg .b32 t; setp.lt.s32 p, %1, 16; @p mov.b32 t, %1; "
                     "shfl.sync.bfly.b32 %0, t, 16, 31, 0xffffffff; }"
                     : "=r"(r) : "r"(in[threadIdx.x]));
    out[threadIdx.x] = r;
}

CASE(unwritten_predicate) {
    int r;
    if (BUG) asm volatile("{ .reg .pred p; selp.b32 %0, 1, 2, p; }" : "=r"(r));
    else asm volatile("{ .reg .pred p; setp.eq.s32 p, %1, 3; selp.b32 %0, 1, 2, p; }" : "=r"(r) : "r"(in[threadIdx.x]));
    out[threadIdx.x] = r;
}

// ---- cp.async ----

CASE(copy_not_awaited) {
    __shared__ __align__(16) int s[256];
    int i = threadIdx.x;
    copy_16(&s[4 * i], &in[4 * i]);
    commit();
    if (!BUG) wait<0>();
    __syncthreads();
    out[i] = s[255 - i];
}

CASE(copy_not_committed) {
    __shared__ __align__(16) int s[256];
    int i = threadIdx.x;
    copy_16(&s[4 * i], &in[4 * i]);
    if (!BUG) commit();
    wait<0>();
    out[i] = s[4 * i];
}

CASE(copy_read_before_wait) {
    __shared__ __align__(16) int s[256];
    int i = threadIdx.x;
    copy_16(&s[4 * i], &in[4 * i]);
    commit();
    int x = 0;
    if (BUG) x = *(volatile int*)&s[4 * i];
    wait<0>();
    if (!BUG) x = s[4 * i];
    out[i] = x;
}

// The wait covers the thread's own copies only.
CASE(copy_read_by_other_lanes) {
    __shared__ __align__(16) int s[128];
    int i = threadIdx.x;
    copy_16(&s[4 * i], &in[4 * i]);
    commit();
    wait<0>();
    if (!BUG) __syncwarp();
    out[i] = s[4 * (31 - i)];
}

CASE(copy_overwrites_pending) {
    __shared__ __align__(16) int s[128];
    int i = threadIdx.x;
    copy_16(&s[4 * i], &in[4 * i]);
    commit();
    if (!BUG) wait<0>();
    copy_16(&s[4 * i], &in[128 + 4 * i]);
    commit();
    wait<0>();
    out[i] = s[4 * i];
}

CASE(store_over_pending_copy) {
    __shared__ __align__(16) int s[128];
    int i = threadIdx.x;
    copy_16(&s[4 * i], &in[4 * i]);
    commit();
    if (!BUG) wait<0>();
    *(volatile int*)&s[4 * i + 2] = i;
    wait<0>();
    out[i] = s[4 * i + 2];
}

CASE(ldmatrix_of_pending_copy) {
    __shared__ __align__(16) int s[128];
    int i = threadIdx.x;
    copy_16(&s[4 * i], &in[4 * i]);
    commit();
    if (!BUG) wait<0>();
    __syncwarp();
    int r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r) : "r"(shared_address(s) + 16 * (i & 7)) : "memory");
    wait<0>();
    out[i] = r;
}

CASE(copy_source_size_too_large) {
    __shared__ __align__(16) int s[128];
    int i = threadIdx.x;
    copy_16(&s[4 * i], &in[4 * i], BUG ? n / 8 : n / 32);
    commit();
    wait<0>();
    out[i] = s[4 * i + 3];
}

CASE(copy_past_the_end) {
    __shared__ __align__(16) int s[384];
    int i = threadIdx.x, size = BUG || 4 * i < n ? 16 : 0;
    copy_16(&s[4 * i], &in[4 * i], size);
    commit();
    wait<0>();
    out[i] = s[4 * i];
}

// ---- order ----

CASE(counter_read_without_barrier) {
    __shared__ int count;
    int i = threadIdx.x;
    if (i == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, 1);
    if (!BUG) __syncthreads();
    if (i == 40) out[0] = count;
}

// ---- between blocks ----

CASE(store_beside_atomics) {
    if (threadIdx.x != 0) return;
    if (BUG && blockIdx.x == 1) in[0] = 1;
    else atomicAdd(&in[0], 1);
}

// Two lanes share a word: each may do what it likes with its own half, the other's needs an order.
CASE(halves_of_a_neighbour) {
    __shared__ short s[64];
    int i = threadIdx.x;
    s[i] = in[i];
    asm volatile("" ::: "memory");
    s[i] = s[i] * 2;
    asm volatile("" ::: "memory");
    out[i] = s[BUG ? i ^ 1 : i];
}

// The same where the half that is overwritten has been read.
CASE(halves_past_a_neighbour) {
    __shared__ short s[33];
    int i = threadIdx.x;
    s[i] = in[i];
    if (i == 0) s[32] = 0;
    __syncwarp();
    int next = s[i + 1];
    if (BUG) asm volatile("" ::: "memory");
    else __syncwarp();
    s[i] = next + 1;
    asm volatile("" ::: "memory");
    out[i] = s[i];
}

// The last block sums what the others left; a fence for the block orders nothing between blocks.
CASE(fence_for_the_block_only) {
    if (threadIdx.x != 0) return;
    out[blockIdx.x] = blockIdx.x;
    if (BUG) __threadfence_block();
    else __threadfence();
    if (atomicAdd(&in[n - 1], 1) == n - 1 + (int)gridDim.x - 1) {
        if (BUG) __threadfence_block();
        else __threadfence();
        int sum = 0;
        for (int b = 0; b < (int)gridDim.x; b++) sum += out[b];
        out[gridDim.x] = sum;
    }
}

CASE(atomic_for_the_block_only) {
    if (BUG) atomicAdd_block(&in[0], 1);
    else atomicAdd(&in[0], 1);
}

// ---- barriers ----

CASE(barrier_skipped_by_a_warp) {
    int i = threadIdx.x;
    if (!BUG || i < 32) __syncthreads();
    out[i] = in[i];
}

CASE(barrier_trip_counts_differ) {
    int i = threadIdx.x;
    for (int k = 0; k < (BUG ? 2 + in[i] / 32 : 2); k++) __syncthreads();
    out[i] = in[i];
}

CASE(barrier_waits_for_too_many) {
    int i = threadIdx.x;
    if (i < 32) asm volatile("bar.sync 1, %0;" ::"r"(BUG ? 64 : 32) : "memory");
    out[i] = in[i];
}

CASE(barrier_numbers_differ) {
    int i = threadIdx.x;
    int number = BUG && i >= 32 ? 2 : 1;
    asm volatile("bar.sync %0, 64;" ::"r"(number) : "memory");
    out[i] = in[i];
}

CASE(barrier_number_too_large) {
    asm volatile("bar.sync %0, 64;" ::"r"(BUG ? n / 16 : n / 32) : "memory");
    out[threadIdx.x] = in[threadIdx.x];
}

// ---- warps ----

CASE(vote_in_a_branch) {
    int i = threadIdx.x;
    if (in[i] & 1) out[i] = __ballot_sync(BUG ? ~0u : 0xaaaaaaaau, in[i] & 2);
}

CASE(reduce_in_a_branch) {
    int i = threadIdx.x;
    if (in[i] >= 8) out[i] = __reduce_add_sync(BUG ? ~0u : 0xffffff00u, in[i]);
}

CASE(syncwarp_in_a_branch) {
    int i = threadIdx.x;
    if (in[i] < 16) __syncwarp(BUG ? ~0u : 0xffffu);
    out[i] = in[i];
}

CASE(shuffle_in_a_partial_warp) {
    int i = threadIdx.x;
    out[i] = __shfl_xor_sync(BUG || i < 32 ? ~0u : 0xffffu, in[i], 1);
}

// Every lane of a mask must pass the same mask.
CASE(masks_disagree) {
    int i = threadIdx.x;
    unsigned low = BUG ? ~0u : 0xffffu;
    out[i] = __reduce_add_sync(i < 16 ? low : 0xffff0000u, in[i]);
}

// ---- for defects of the host's side ----

extern "C" __global__ void copy_ints(int* out, int* in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = in[i];
}

extern "C" __global__ void __launch_bounds__(128) at_most_128(int* out, int* in, int n) {
    out[threadIdx.x] = in[threadIdx.x];
}
