// Conversions of every pair of types and rounding, results as bit patterns.
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define CONVERT(NAME, T, R, EXPR)                                  \
    extern "C" __global__ void NAME(R* out, const T* a, int n) {   \
        int i = blockIdx.x * blockDim.x + threadIdx.x;             \
        if (i >= n) return;                                        \
        T x = a[i];                                                \
        out[i] = (EXPR);                                           \
    }

CONVERT(f32_to_int, float, int32_t, __float2int_rn(x) ^ __float2int_rz(x) * 3 ^ __float2int_ru(x) * 5 ^ __float2int_rd(x) * 7)
CONVERT(f32_to_uint, float, uint32_t, __float2uint_rn(x) ^ __float2uint_rz(x) * 3 ^ __float2uint_ru(x) * 5 ^ __float2uint_rd(x) * 7)
CONVERT(f32_to_long, float, int64_t, __float2ll_rn(x) ^ __float2ll_rz(x) * 3 ^ __float2ll_ru(x) * 5 ^ __float2ll_rd(x) * 7)
CONVERT(f64_to_int, double, int32_t, __double2int_rn(x) ^ __double2int_rz(x) * 3 ^ __double2int_ru(x) * 5 ^ __double2int_rd(x) * 7)
CONVERT(f64_to_f32, double, uint32_t, __float_as_uint(__double2float_rn(x)) ^ __float_as_uint(__double2float_rz(x)) * 3 ^ __float_as_uint(__double2float_ru(x)) * 5 ^ __float_as_uint(__double2float_rd(x)) * 7)
CONVERT(int_to_f32, int32_t, uint32_t, __float_as_uint(__int2float_rn(x)) ^ __float_as_uint(__int2float_rz(x)) * 3 ^ __float_as_uint(__int2float_ru(x)) * 5 ^ __float_as_uint(__int2float_rd(x)) * 7)
CONVERT(long_to_f32, int64_t, uint32_t, __float_as_uint(__ll2float_rn(x)) ^ __float_as_uint(__ll2float_rz(x)) * 3 ^ __float_as_uint(__ll2float_ru(x)) * 5 ^ __float_as_uint(__ll2float_rd(x)) * 7)
CONVERT(long_to_f64, int64_t, int64_t, __double_as_longlong(__ll2double_rn(x)) ^ __double_as_longlong(__ll2double_rz(x)) * 3 ^ __double_as_longlong(__ll2double_ru(x)) * 5 ^ __double_as_longlong(__ll2double_rd(x)) * 7)
CONVERT(f32_to_f16, float, uint32_t, (uint32_t)__half_as_ushort(__float2half_rn(x)) | (uint32_t)__half_as_ushort(__float2half_rz(x)) << 16)
CONVERT(f32_to_f16_directed, float, uint32_t, (uint32_t)__half_as_ushort(__float2half_ru(x)) | (uint32_t)__half_as_ushort(__float2half_rd(x)) << 16)
CONVERT(f32_to_bf16, float, uint32_t, (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(x)) | (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rz(x)) << 16)
CONVERT(f16_to_f32, uint16_t, uint32_t, __float_as_uint(__half2float(__ushort_as_half(x))))
CONVERT(bf16_to_f32, uint16_t, uint32_t, __float_as_uint(__bfloat162float(__ushort_as_bfloat16(x))))
CONVERT(f16_to_int, uint16_t, int32_t, __half2int_rn(__ushort_as_half(x)) ^ __half2int_rz(__ushort_as_half(x)) * 3)
CONVERT(int_to_f16, int32_t, uint32_t, (uint32_t)__half_as_ushort(__int2half_rn(x)) | (uint32_t)__half_as_ushort(__int2half_rz(x)) << 16)
CONVERT(narrow_ints, int64_t, int64_t, (int64_t)(int8_t)x + (int64_t)(uint8_t)x * 3 + (int64_t)(int16_t)x * 5 + (int64_t)(uint16_t)x * 7 + (int64_t)(int32_t)x * 11 + (int64_t)(uint32_t)x * 13)
CONVERT(small_to_float, int32_t, uint32_t, __float_as_uint((float)(int8_t)x) ^ __float_as_uint((float)(uint8_t)x) * 3 ^ __float_as_uint((float)(int16_t)x) * 5 ^ __float_as_uint((float)(uint16_t)x) * 7)

extern "C" __global__ void f32x2_to_bf16x2(uint32_t* out, const float* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (2 * i + 1 >= n) return;
    __nv_bfloat162 p = __floats2bfloat162_rn(a[2 * i], a[2 * i + 1]);
    out[i] = *reinterpret_cast<uint32_t*>(&p);
}

extern "C" __global__ void f32_to_tf32(uint32_t* out, const float* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(a[i]));
    out[i] = r;
}

// Arithmetic on pairs, each operation rounded once.
extern "C" __global__ void half2_arithmetic(__half2* out, const __half2* a, const __half2* b, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[4 * i] = __hadd2(a[i], b[i]);
    out[4 * i + 1] = __hmul2(a[i], b[i]);
    out[4 * i + 2] = __hfma2(a[i], b[i], a[i]);
    out[4 * i + 3] = __hmax2(a[i], __hneg2(b[i]));
}

extern "C" __global__ void bfloat2_arithmetic(__nv_bfloat162* out, const __nv_bfloat162* a, const __nv_bfloat162* b, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[4 * i] = __hadd2(a[i], b[i]);
    out[4 * i + 1] = __hmul2(a[i], b[i]);
    out[4 * i + 2] = __hfma2(a[i], b[i], a[i]);
    out[4 * i + 3] = __hmin2(a[i], __habs2(b[i]));
}
