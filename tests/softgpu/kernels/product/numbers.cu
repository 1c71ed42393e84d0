// Arithmetic of the product that repeats bit for bit on every backend; compiled with --fmad=false.
#include <cstdint>

// Philox4x32-10 (Salmon et al. 2011).
__device__ __forceinline__ uint4 philox(uint4 c, uint2 k) {
    for (int round = 0; round < 10; round++) {
        uint32_t high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
        uint32_t high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
        c = make_uint4(high1 ^ c.y ^ k.x, low1, high0 ^ c.w ^ k.y, low0);
        k.x += 0x9E3779B9u;
        k.y += 0xBB67AE85u;
    }
    return c;
}

extern "C" __global__ void philox_blocks(uint4* out, const uint4* counters, const uint2* keys, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = philox(counters[i], keys[i]);
}

#define F(BITS) __uint_as_float(BITS)
constexpr uint32_t TWO_THIRDS = 0x3f2aaaab;

// Two normals of two words by Box-Muller: every operation is one IEEE operation in the order written.
__device__ __forceinline__ float2 pair(uint32_t radius, uint32_t angle) {
    const float unit = F(0x2f800000);
    float u = fmaf(__uint2float_rn(radius), unit, 0.5f * unit);
    uint32_t bits = __float_as_uint(u) - TWO_THIRDS;
    float exponent = (float)((int32_t)bits >> 23);
    float f = F((bits & 0x007fffffu) + TWO_THIRDS) - 1.0f;
    float log = F(0xbe8f9401);
    log = fmaf(log, f, F(0x3e9d862f));
    log = fmaf(log, f, F(0xbe8f544d));
    log = fmaf(log, f, F(0x3ea81c70));
    log = fmaf(log, f, F(0xbecce9d8));
    log = fmaf(log, f, F(0x3f000a27));
    log = fmaf(log, f, F(0xbf2aaa7e));
    log = fmaf(log, f, F(0x3f7fffeb));
    log = fmaf(log, f, F(0xc0000000));
    float r = sqrtf(fmaf(exponent, F(0xbfb17218), f * log));
    float t = (float)(int32_t)(angle << 2) * unit;
    float t2 = t * t;
    float sine = fmaf(fmaf(fmaf(F(0xbb97ad0e), t2, F(0x3da33591)), t2, F(0xbf255df6)), t2, F(0x3fc90fdb));
    float cosine = fmaf(fmaf(fmaf(F(0xbca73c5f), t2, F(0x3e81d82c)), t2, F(0xbf9de9ce)), t2, F(0x3f800000));
    sine = r * (t * sine);
    cosine = F(__float_as_uint(r * cosine) ^ (angle & 0x80000000u));
    return angle & 0x40000000u ? make_float2(sine, cosine) : make_float2(cosine, sine);
}

extern "C" __global__ void normal_pairs(float2* out, const uint2* words, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = pair(words[i].x, words[i].y);
}

// Normals of an image: four elements share a counter (element / 4, draw, image, purpose << 24).
extern "C" __global__ void normals(float4* out, int seed, int image, int purpose, int draw, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint4 w = philox(make_uint4(i, draw, image, (uint32_t)purpose << 24), make_uint2(seed, 0));
    float2 a = pair(w.x, w.y), b = pair(w.z, w.w);
    out[i] = make_float4(a.x, a.y, b.x, b.y);
}

// Sum of the block in a fixed tree; every thread gets it.
__device__ float block_total(float* s, float x) {
    int i = threadIdx.x;
    s[i] = x;
    __syncthreads();
    for (int d = blockDim.x / 2; d > 0; d >>= 1) {
        if (i < d) s[i] += s[i + d];
        __syncthreads();
    }
    float total = s[0];
    __syncthreads();
    return total;
}

// y = (x - mean) rstd gamma + beta over (pixels, channels of a group); variance in a second pass.
// x, y: [n, pixels, channels]; a block per group and image.
extern "C" __global__ void group_norm(float* y, float* mean, float* rstd, const float* x, const float* gamma,
                                      const float* beta, int pixels, int channels, float eps) {
    __shared__ float s[128];
    int group = blockIdx.x, width = channels / gridDim.x, count = pixels * width;
    int64_t image = (int64_t)blockIdx.y * pixels * channels;
    auto at = [&](int k) { return image + (int64_t)(k / width) * channels + group * width + k % width; };
    float sum = 0;
    for (int k = threadIdx.x; k < count; k += blockDim.x) sum += x[at(k)];
    float m = block_total(s, sum) / count;
    float squares = 0;
    for (int k = threadIdx.x; k < count; k += blockDim.x) {
        float d = x[at(k)] - m;
        squares += d * d;
    }
    float r = 1.0f / sqrtf(block_total(s, squares) / count + eps);
    for (int k = threadIdx.x; k < count; k += blockDim.x) {
        int c = group * width + k % width;
        y[at(k)] = (x[at(k)] - m) * r * gamma[c] + beta[c];
    }
    if (threadIdx.x == 0) {
        mean[blockIdx.y * gridDim.x + group] = m;
        rstd[blockIdx.y * gridDim.x + group] = r;
    }
}
