// Elementwise arithmetic, one kernel an operation family: out[i] = op(a[i], b[i], c[i]).
#include <cstdint>

#define U(X) __float_as_uint(X)
#define D(X) (uint64_t)__double_as_longlong(X)

#define ELEMENTWISE(NAME, T, R, EXPR)                                                   \
    extern "C" __global__ void NAME(R* out, const T* a, const T* b, const T* c, int n) { \
        int i = blockIdx.x * blockDim.x + threadIdx.x;                                  \
        if (i >= n) return;                                                             \
        T x = a[i], y = b[i], z = c[i];                                                 \
        (void)x; (void)y; (void)z;                                                      \
        out[i] = (EXPR);                                                                \
    }

ELEMENTWISE(u32_mix, uint32_t, uint32_t, (x + y) * 2654435761u - (z ^ (x >> (y & 31))) + (x << (z & 31)))
ELEMENTWISE(s32_mix, int32_t, int32_t, x / (y | 1) + x % (z | 1) + (x >> (y & 31)) + min(x, y) - max(y, z) + abs(x / 2))
ELEMENTWISE(u64_mix, uint64_t, uint64_t, x * y + (z >> (x & 63)) + x / (y | 1) + __umul64hi(x, z))
ELEMENTWISE(s64_mix, int64_t, int64_t, x * y - z / (y | 1) + x % (z | 1) + (x >> (y & 63)) + __mul64hi(x, y))
ELEMENTWISE(s16_mix, int16_t, int16_t, (int16_t)(x * y + (z >> 3) - (x < y ? x : y)))
ELEMENTWISE(u8_mix, uint8_t, uint8_t, (uint8_t)(x * y + (z >> 3) + (x ^ y)))
ELEMENTWISE(mul_hi, uint32_t, uint32_t, __umulhi(x, y) + (uint32_t)__mulhi((int)x, (int)z) + __umul24(x, z))
ELEMENTWISE(bits, uint32_t, uint32_t, __popc(x) + 37 * __clz(y) + 1001 * __ffs(z) + __brev(x) + __byte_perm(x, y, 0x3715))
ELEMENTWISE(bits64, uint64_t, uint64_t, __popcll(x) + 37 * __clzll(y) + __brevll(z) + __ffsll(x))
ELEMENTWISE(funnel, uint32_t, uint32_t, __funnelshift_l(x, y, z) ^ __funnelshift_r(x, y, z) ^ __funnelshift_lc(x, y, z & 63) ^ __funnelshift_rc(x, y, z & 63))
ELEMENTWISE(dot4, uint32_t, uint32_t, __dp4a(x, y, z) + (uint32_t)__dp4a((int)x, (int)y, (int)z) + (uint32_t)__dp2a_lo((int)x, (int)y, (int)z) + __dp2a_hi(x, y, z))
ELEMENTWISE(sad_mix, uint32_t, uint32_t, __usad(x, y, z) + __sad((int)x, (int)y, z))
ELEMENTWISE(wide_carry, uint64_t, uint64_t, (uint64_t)(((unsigned __int128)x * y + z) >> 64) + (uint64_t)((unsigned __int128)x * y + z))
ELEMENTWISE(f32_basic, float, float, x * y + z - x / (y * y + 1.0f) + sqrtf(fabsf(z)) + fminf(x, y) + fmaxf(y, z))
ELEMENTWISE(f32_round, float, uint32_t, U(__fadd_rn(x, y)) ^ U(__fadd_rz(x, y)) * 3 ^ U(__fadd_ru(x, y)) * 5 ^ U(__fadd_rd(x, y)) * 7 ^ U(__fmul_rn(x, y)) * 9 ^ U(__fmul_rz(x, y)) * 11 ^ U(__fmul_ru(x, y)) * 13 ^ U(__fmul_rd(x, y)) * 15)
ELEMENTWISE(f32_fma_round, float, uint32_t, U(__fmaf_rn(x, y, z)) ^ U(__fmaf_rz(x, y, z)) * 3 ^ U(__fmaf_ru(x, y, z)) * 5 ^ U(__fmaf_rd(x, y, z)) * 7)
ELEMENTWISE(f32_div_round, float, uint32_t, U(__fdiv_rn(x, y)) ^ U(__fdiv_rz(x, y)) * 3 ^ U(__fdiv_ru(x, y)) * 5 ^ U(__fdiv_rd(x, y)) * 7 ^ U(__fsqrt_rn(fabsf(z))) * 9 ^ U(__fsqrt_rz(fabsf(z))) * 11 ^ U(__fsqrt_ru(fabsf(z))) * 13 ^ U(__fsqrt_rd(fabsf(z))) * 15)
ELEMENTWISE(f64_basic, double, double, x * y + z - x / (y * y + 1.0) + sqrt(fabs(z)) + fmin(x, y) + fmax(y, z))
ELEMENTWISE(f64_round, double, uint64_t, D(__dadd_rn(x, y)) ^ D(__dadd_rz(x, y)) * 3 ^ D(__dadd_ru(x, y)) * 5 ^ D(__dadd_rd(x, y)) * 7 ^ D(__dmul_rn(x, y)) * 9 ^ D(__dmul_rz(x, y)) * 11 ^ D(__dmul_ru(x, y)) * 13 ^ D(__dmul_rd(x, y)) * 15)
ELEMENTWISE(f64_fma_round, double, uint64_t, D(__fma_rn(x, y, z)) ^ D(__fma_rz(x, y, z)) * 3 ^ D(__fma_ru(x, y, z)) * 5 ^ D(__fma_rd(x, y, z)) * 7)
ELEMENTWISE(f64_div_round, double, uint64_t, D(__ddiv_rn(x, y)) ^ D(__ddiv_rz(x, y)) * 3 ^ D(__ddiv_ru(x, y)) * 5 ^ D(__ddiv_rd(x, y)) * 7 ^ D(__dsqrt_rn(fabs(z))) * 9 ^ D(__dsqrt_rz(fabs(z))) * 11 ^ D(__dsqrt_ru(fabs(z))) * 13 ^ D(__dsqrt_rd(fabs(z))) * 15)
ELEMENTWISE(f32_approx, float, float, __expf(x) + __sinf(y) + __cosf(z) + __log2f(fabsf(x) + 1) + rsqrtf(fabsf(y) + 1) + __fdividef(x, z))
ELEMENTWISE(f32_library, float, float, expf(x) + logf(fabsf(y) + 0.5f) + tanhf(z) + sinf(x) + powf(fabsf(y) + 0.1f, z) + erff(x))
ELEMENTWISE(f64_library, double, double, exp(x) + log(fabs(y) + 0.5) + tanh(z) + cos(x))
ELEMENTWISE(f32_special, float, float, copysignf(x, y) + (isnan(z) ? 1.0f : 2.0f) + (isinf(x) ? 4.0f : 8.0f) + __saturatef(y) + rintf(z * 10) + floorf(x * 7) + ceilf(y * 7) + truncf(z * 7))
ELEMENTWISE(compare, float, uint32_t, (x < y) | (x <= y) << 1 | (x > z) << 2 | (x >= z) << 3 | (y == z) << 4 | (x != y) << 5 | (!(x < z)) << 6 | (x < y && y < z || x > z) << 7)
