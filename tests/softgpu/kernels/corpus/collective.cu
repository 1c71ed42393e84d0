// Threads together: shared memory, warps, atomics, vectors.
#include <cstdint>
#include <cooperative_groups.h>

extern "C" __global__ void saxpy(float* y, const float* x, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

extern "C" __global__ void block_sum(float* out, const float* x, int n) {
    __shared__ float part[32];
    float s = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) s += x[i];
    for (int d = 16; d > 0; d >>= 1) s += __shfl_xor_sync(~0u, s, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x < 32) {
        s = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
        for (int d = 16; d > 0; d >>= 1) s += __shfl_xor_sync(~0u, s, d);
        if (threadIdx.x == 0) out[blockIdx.x] = s;
    }
}

extern "C" __global__ void transpose(float* out, const float* in, int rows, int cols) {
    __shared__ float tile[32][33];
    int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (x < cols && y + k < rows) tile[threadIdx.y + k][threadIdx.x] = in[(y + k) * cols + x];
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x;
    y = blockIdx.x * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (x < rows && y + k < cols) out[(y + k) * rows + x] = tile[threadIdx.x][threadIdx.y + k];
}

extern "C" __global__ void warp_primitives(uint32_t* out, const uint32_t* a) {
    int i = threadIdx.x;
    uint32_t x = a[i], s = 0;
    s += __shfl_sync(~0u, x, (x + 3) & 31);
    s = s * 31 + __shfl_up_sync(~0u, x, 3);
    s = s * 31 + __shfl_down_sync(~0u, x, 5);
    s = s * 31 + __shfl_xor_sync(~0u, x, 9, 16);
    s = s * 31 + __ballot_sync(~0u, x & 1);
    s = s * 31 + __any_sync(~0u, x == 7) + 2 * __all_sync(~0u, x < 1000);
    s = s * 31 + __match_any_sync(~0u, x & 3);
    s = s * 31 + __reduce_add_sync(~0u, x) + __reduce_max_sync(~0u, x) + __reduce_or_sync(~0u, x);
    if (i & 1) s = s * 31 + __shfl_sync(0xaaaaaaaa, x, 5) + __activemask();
    out[i] = s;
}

extern "C" __global__ void atomics(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int x = a[i];
    atomicAdd(&out[0], x);
    atomicMin(&out[1], x);
    atomicMax(&out[2], x);
    atomicAnd(&out[3], x);
    atomicOr(&out[4], x);
    atomicXor(&out[5], x);
    atomicInc((unsigned*)&out[6], 17);
    atomicDec((unsigned*)&out[7], 17);
    atomicAdd((unsigned long long*)&out[8], (unsigned long long)x);
    int old;
    do { old = *(volatile int*)&out[11]; } while (atomicCAS(&out[11], old, old + 2) != old);
}

extern "C" __global__ void float_atomics(float* f, double* d, const float* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomicAdd(f, a[i]);
    atomicAdd(d, (double)a[i]);
}

extern "C" __global__ void histogram(unsigned* out, const unsigned char* a, int n) {
    __shared__ unsigned bins[256];
    for (int k = threadIdx.x; k < 256; k += blockDim.x) bins[k] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&bins[a[i]], 1u);
    __syncthreads();
    for (int k = threadIdx.x; k < 256; k += blockDim.x) atomicAdd(&out[k], bins[k]);
}

// Inclusive scan of one block by warps.
extern "C" __global__ void scan(int* out, const int* a) {
    __shared__ int sums[32];
    int i = threadIdx.x, lane = i & 31, warp = i >> 5;
    int x = a[i];
    for (int d = 1; d < 32; d <<= 1) {
        int y = __shfl_up_sync(~0u, x, d);
        if (lane >= d) x += y;
    }
    if (lane == 31) sums[warp] = x;
    __syncthreads();
    if (warp == 0) {
        int s = lane < blockDim.x / 32 ? sums[lane] : 0;
        for (int d = 1; d < 32; d <<= 1) {
            int y = __shfl_up_sync(~0u, s, d);
            if (lane >= d) s += y;
        }
        sums[lane] = s;
    }
    __syncthreads();
    out[i] = x + (warp ? sums[warp - 1] : 0);
}

// A row a warp.
extern "C" __global__ void softmax(float* out, const float* a, int rows, int cols) {
    int row = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    if (row >= rows) return;
    float top = -INFINITY;
    for (int k = lane; k < cols; k += 32) top = fmaxf(top, a[row * cols + k]);
    for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
    float sum = 0;
    for (int k = lane; k < cols; k += 32) sum += expf(a[row * cols + k] - top);
    for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
    for (int k = lane; k < cols; k += 32) out[row * cols + k] = expf(a[row * cols + k] - top) / sum;
}

__device__ uint4 philox_round(uint4 c, uint2 k) {
    uint32_t hi0 = __umulhi(0xD2511F53u, c.x), lo0 = 0xD2511F53u * c.x;
    uint32_t hi1 = __umulhi(0xCD9E8D57u, c.z), lo1 = 0xCD9E8D57u * c.z;
    return make_uint4(hi1 ^ c.y ^ k.x, lo1, hi0 ^ c.w ^ k.y, lo0);
}

extern "C" __global__ void philox(uint4* out, uint32_t k0, uint32_t k1, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint4 c = make_uint4(i, 0, 7, 9);
    uint2 k = make_uint2(k0, k1);
    for (int r = 0; r < 10; r++) {
        c = philox_round(c, k);
        k.x += 0x9E3779B9u;
        k.y += 0xBB67AE85u;
    }
    out[i] = c;
}

extern "C" __global__ void vectors(float4* out, const float4* a, const short2* b, const double2* c, const uint8_t* d, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float4 v = a[i];
    short2 s = b[i];
    double2 w = c[i];
    uchar4 u = reinterpret_cast<const uchar4*>(d)[i];
    out[i] = make_float4(v.x + s.x, v.y + s.y, v.z + (float)w.x + u.x, v.w + (float)w.y + u.w);
}

// Dynamic shared memory with two arrays in it.
extern "C" __global__ void reverse_both(int* out, const int* a, const short* b, int n) {
    extern __shared__ __align__(16) unsigned char pool[];
    int* x = (int*)pool;
    short* y = (short*)(pool + 4 * n);
    int i = threadIdx.x;
    x[i] = a[i];
    y[i] = b[i];
    __syncthreads();
    out[i] = x[n - 1 - i] * 3 + y[n - 1 - i];
}

// The last block to finish adds the partial sums: order comes from the fence and the counter.
extern "C" __global__ void last_block_sum(float* out, float* partial, unsigned* done, const float* a, int n) {
    __shared__ float s[128];
    __shared__ bool last;
    float x = 0;
    for (int i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128) x += a[i];
    s[threadIdx.x] = x;
    __syncthreads();
    for (int d = 64; d; d >>= 1) {
        if (threadIdx.x < d) s[threadIdx.x] += s[threadIdx.x + d];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = s[0];
        __threadfence();
        last = atomicAdd(done, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        __threadfence();
        float t = 0;
        for (int b = 0; b < gridDim.x; b++) t += partial[b];
        *out = t;
    }
}

// Producer and consumer warps on named barriers.
extern "C" __global__ void named_barriers(int* out, const int* a) {
    __shared__ int ring[2][32];
    int lane = threadIdx.x & 31;
    if (threadIdx.x < 32) {
        for (int k = 0; k < 8; k++) {
            int slot = k & 1;
            if (k >= 2) asm volatile("bar.sync %0, 64;" ::"r"(3 + slot) : "memory");
            ring[slot][lane] = a[k * 32 + lane];
            asm volatile("bar.arrive %0, 64;" ::"r"(1 + slot) : "memory");
        }
    } else {
        int sum = 0;
        for (int k = 0; k < 8; k++) {
            int slot = k & 1;
            asm volatile("bar.sync %0, 64;" ::"r"(1 + slot) : "memory");
            sum += ring[slot][31 - lane] * (k + 1);
            if (k < 6) asm volatile("bar.arrive %0, 64;" ::"r"(3 + slot) : "memory");
        }
        out[lane] = sum;
    }
}

extern "C" __global__ void barrier_reduction(int* out, const int* a) {
    int x = a[threadIdx.x];
    int n = __syncthreads_count(x & 1);
    int all = __syncthreads_and(x < 1000), any = __syncthreads_or(x == 5);
    out[threadIdx.x] = n * 4 + all * 2 + any;
}

namespace cg = cooperative_groups;

extern "C" __global__ void tiles(int* out, const int* a) {
    __shared__ int parts[32];
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<8> tile = cg::tiled_partition<8>(block);
    int x = a[block.thread_rank()];
    for (int d = tile.size() / 2; d; d /= 2) x += tile.shfl_down(x, d);
    if (tile.thread_rank() == 0) parts[tile.meta_group_rank()] = x;
    block.sync();
    out[block.thread_rank()] = parts[block.thread_rank() / 8] - tile.shfl(x, 0);
}

// A __syncwarp orders the lanes of a warp.
extern "C" __global__ void warp_exchange(int* out, const int* a) {
    __shared__ int s[64];
    int i = threadIdx.x;
    s[i] = a[i];
    __syncwarp();
    int y = s[i ^ 7];
    __syncwarp();
    s[i] = y * 2;
    __syncwarp();
    out[i] = s[i ^ 1];
}
