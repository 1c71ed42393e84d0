// What the product's kernels are made of, form by form.
#include <cooperative_groups.h>

extern "C" __global__ void warp_reductions(unsigned* out, const unsigned* a) {
    int i = threadIdx.x;
    unsigned x = a[i], mask = i < 8 ? 0xffu : 0xffffff00u;
    out[i] = __reduce_add_sync(mask, x);
    out[32 + i] = __reduce_min_sync(mask, x);
    out[64 + i] = __reduce_max_sync(mask, x);
    out[96 + i] = (unsigned)__reduce_min_sync(mask, (int)x);
    out[128 + i] = (unsigned)__reduce_max_sync(mask, (int)x);
    out[160 + i] = __reduce_and_sync(mask, x);
    out[192 + i] = __reduce_or_sync(mask, x);
    out[224 + i] = __reduce_xor_sync(mask, x);
}

extern "C" __global__ void matches(unsigned* out, const unsigned long long* a) {
    int i = threadIdx.x, same;
    out[i] = __match_any_sync(~0u, a[i]);
    out[32 + i] = __match_any_sync(~0u, (unsigned)a[i]);
    out[64 + i] = __match_all_sync(~0u, (unsigned)(a[i] >> 60), &same) + same;
    out[96 + i] = __match_all_sync(~0u, a[i], &same) + same;
}

extern "C" __global__ void wide_shuffles(long long* out, double* sums, const long long* a, const double* b) {
    int i = threadIdx.x;
    out[i] = __shfl_xor_sync(~0u, a[i], 5) * 3 + __shfl_up_sync(~0u, a[i], 2, 8) + __shfl_sync(~0u, a[i], 9, 16);
    double x = b[i];
    for (int d = 16; d; d >>= 1) x += __shfl_down_sync(~0u, x, d);
    if (i == 0) *sums = x;
}

extern "C" __global__ void cache_hints(int4* out, const int4* a, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    __stcg(&out[i], __ldcg(&a[i]));
    __stcs(&out[n + i], __ldcs(&a[i]));
    __stwt(&out[2 * n + i], __ldca(&a[i]));
    __stwb(&out[3 * n + i], __ldg(&a[i]));
    __stwb(&out[4 * n + i], __ldlu(&a[i]));
    out[5 * n + i] = __ldcv(&a[i]);
}

extern "C" __global__ void narrow_vectors(uchar4* bytes, ushort4* shorts, longlong2* longs, const uchar4* a,
                                          const ushort4* b, const longlong2* c, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    uchar4 u = a[i];
    bytes[i] = make_uchar4(u.w, u.z, u.y, u.x);
    ushort4 s = b[i];
    shorts[i] = make_ushort4(s.y, s.x, s.w, s.z);
    longlong2 l = c[i];
    longs[i] = make_longlong2(l.y - 1, l.x + 1);
}

// Four 8x8 matrices of 16-bit elements in a [32][40] tile; registers of x1, x2, x4 and transposed x4.
extern "C" __global__ void matrix_loads(unsigned* out, const unsigned short* a) {
    __shared__ __align__(16) unsigned short tile[32][40];
    int i = threadIdx.x;
    for (int k = 0; k < 8; k++) tile[i][k] = a[8 * i + k];
    __syncwarp();
    unsigned at = (unsigned)__cvta_generic_to_shared(&tile[i][0]), r[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(at) : "memory");
    out[i] = r[0];
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
    for (int k = 0; k < 2; k++) out[32 * (1 + k) + i] = r[k];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
    for (int k = 0; k < 4; k++) out[32 * (3 + k) + i] = r[k];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
    for (int k = 0; k < 4; k++) out[32 * (7 + k) + i] = r[k];
}

// Copies of 4, 8 and 16 bytes; the last takes fewer from the source and fills with zeros.
extern "C" __global__ void small_copies(int* out, const int* a) {
    __shared__ __align__(16) int s[3][128];
    int i = threadIdx.x;
    unsigned four = (unsigned)__cvta_generic_to_shared(&s[0][i]), eight = (unsigned)__cvta_generic_to_shared(&s[1][2 * i]);
    unsigned sixteen = (unsigned)__cvta_generic_to_shared(&s[2][4 * i]);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(four), "l"(&a[i]) : "memory");
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(eight), "l"(&a[2 * i]) : "memory");
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sixteen), "l"(&a[4 * i]), "r"(i % 17) : "memory");
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncwarp();
    out[i] = s[0][31 - i];
    for (int k = 0; k < 2; k++) out[32 + 2 * i + k] = s[1][2 * i + k];
    for (int k = 0; k < 4; k++) out[96 + 4 * i + k] = s[2][4 * i + k];
}

// The lanes of a branch as a group: rank and size.
extern "C" __global__ void branch_groups(int* out, const int* a) {
    int i = threadIdx.x;
    out[i] = -1;
    if (a[i] % 3 == 0) {
        auto group = cooperative_groups::coalesced_threads();
        out[i] = group.thread_rank() + 100 * group.size();
    }
}

// m16n8k8: A register r holds row g + 8r, columns 2t and 2t + 1; B rows 2t and 2t + 1 of column g.
extern "C" __global__ void half_depth_mma(float* out, const unsigned* a, const unsigned* b, const float* c) {
    int i = threadIdx.x, g = i >> 2, t = i & 3;
    float d[4];
    for (int k = 0; k < 4; k++) d[k] = c[(g + 8 * (k >> 1)) * 8 + 2 * t + (k & 1)];
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[g * 4 + t]), "r"(a[(g + 8) * 4 + t]), "r"(b[g * 4 + t]));
    for (int k = 0; k < 4; k++) out[(g + 8 * (k >> 1)) * 8 + 2 * t + (k & 1)] = d[k];
}
