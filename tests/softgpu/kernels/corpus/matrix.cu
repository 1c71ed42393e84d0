// Tensor cores and asynchronous copies.
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

// C[M,N] = A[M,K] B[N,K]^T, one warp a 16x8 tile, fragments loaded by hand.
template <typename T>
__device__ void gemm_by_hand(float* c, const T* a, const T* b, int N, int K, bool bf16) {
    int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
    int row = blockIdx.y * 16, col = blockIdx.x * 8;
    float d[4] = {0, 0, 0, 0};
    for (int k = 0; k < K; k += 16) {
        uint32_t fa[4], fb[2];
        for (int r = 0; r < 4; r++)
            fa[r] = *(const uint32_t*)&a[(row + g + 8 * (r & 1)) * K + k + 2 * t + 8 * (r >> 1)];
        for (int r = 0; r < 2; r++) fb[r] = *(const uint32_t*)&b[(col + g) * K + k + 2 * t + 8 * r];
        if (bf16)
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
        else
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
    }
    for (int i = 0; i < 4; i++) c[(row + g + 8 * (i >> 1)) * N + col + 2 * t + (i & 1)] = d[i];
}

extern "C" __global__ void gemm_bf16(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int N, int K) {
    gemm_by_hand(c, a, b, N, K, true);
}

extern "C" __global__ void gemm_f16(float* c, const __half* a, const __half* b, int N, int K) {
    gemm_by_hand(c, a, b, N, K, false);
}

extern "C" __global__ void gemm_tf32(float* c, const float* a, const float* b, int N, int K) {
    int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
    int row = blockIdx.y * 16, col = blockIdx.x * 8;
    float d[4] = {0, 0, 0, 0};
    for (int k = 0; k < K; k += 8) {
        uint32_t fa[4], fb[2];
        for (int r = 0; r < 4; r++)
            asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fa[r]) : "f"(a[(row + g + 8 * (r & 1)) * K + k + t + 4 * (r >> 1)]));
        for (int r = 0; r < 2; r++) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fb[r]) : "f"(b[(col + g) * K + k + t + 4 * r]));
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
    }
    for (int i = 0; i < 4; i++) c[(row + g + 8 * (i >> 1)) * N + col + 2 * t + (i & 1)] = d[i];
}

// f16 accumulators.
extern "C" __global__ void gemm_f16_f16(__half* c, const __half* a, const __half* b, int N, int K) {
    int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
    int row = blockIdx.y * 16, col = blockIdx.x * 8;
    uint32_t d[2] = {0, 0};
    for (int k = 0; k < K; k += 16) {
        uint32_t fa[4], fb[2];
        for (int r = 0; r < 4; r++)
            fa[r] = *(const uint32_t*)&a[(row + g + 8 * (r & 1)) * K + k + 2 * t + 8 * (r >> 1)];
        for (int r = 0; r < 2; r++) fb[r] = *(const uint32_t*)&b[(col + g) * K + k + 2 * t + 8 * r];
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};"
            : "+r"(d[0]), "+r"(d[1]) : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
    }
    for (int r = 0; r < 2; r++) *(uint32_t*)&c[(row + g + 8 * r) * N + col + 2 * t] = d[r];
}

// 32x32x32 tiles, two stages of cp.async, ldmatrix with padding against bank conflicts; B is
// stored [K,N] and read transposed. 64 threads.
extern "C" __global__ void gemm_pipeline(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int M, int N, int K) {
    constexpr int PITCH = 40;
    __shared__ __align__(16) __nv_bfloat16 sa[2][32][PITCH], sb[2][32][PITCH];
    int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    int row = blockIdx.y * 32, col = blockIdx.x * 32;
    float acc[4][4] = {};
    auto fetch = [&](int stage, int k) {
        for (int i = tid; i < 128; i += 64) {
            int r = i >> 2, q = (i & 3) * 8;
            int ok = row + r < M ? 16 : 0;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(&sa[stage][r][q])),
                         "l"(&a[(row + r < M ? row + r : 0) * K + k + q]), "r"(ok));
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&sb[stage][r][q])),
                         "l"(&b[(k + r) * N + col + q]));
        }
        asm volatile("cp.async.commit_group;");
    };
    fetch(0, 0);
    for (int k = 0, stage = 0; k < K; k += 32, stage ^= 1) {
        if (k + 32 < K) {
            fetch(stage ^ 1, k + 32);
            asm volatile("cp.async.wait_group 1;");
        } else {
            asm volatile("cp.async.wait_group 0;");
        }
        __syncthreads();
        for (int kk = 0; kk < 32; kk += 16) {
            uint32_t fa[4];
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                : "r"(shared_address(&sa[stage][warp * 16 + (lane & 15)][kk + (lane >> 4) * 8])));
            for (int n = 0; n < 4; n++) {
                uint32_t fb[2];
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                    : "=r"(fb[0]), "=r"(fb[1]) : "r"(shared_address(&sb[stage][kk + (lane & 15)][n * 8])));
                float* d = acc[n];
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
            }
        }
        __syncthreads();
    }
    int g = lane >> 2, t = lane & 3;
    for (int n = 0; n < 4; n++)
        for (int i = 0; i < 4; i++) {
            int r = row + warp * 16 + g + 8 * (i >> 1);
            if (r < M) c[r * N + col + n * 8 + 2 * t + (i & 1)] = acc[n][i];
        }
}

// The CUDA C++ pipeline primitives.
extern "C" __global__ void pipeline_copy(int* out, const int* a, int n) {
    __shared__ __align__(16) int s[4][64];
    int i = threadIdx.x;
    for (int k = 0; k < 4; k++) {
        if (i < 16) __pipeline_memcpy_async(&s[k][4 * i], &a[k * 64 + 4 * i], 16);
        __pipeline_commit();
    }
    int sum = 0;
    for (int k = 0; k < 4; k++) {
        __pipeline_wait_prior(0);
        __syncthreads();
        sum += s[k][63 - i] * (k + 1);
        __syncthreads();
    }
    out[i] = sum + n * 0;
}
