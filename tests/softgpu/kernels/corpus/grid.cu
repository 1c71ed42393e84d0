// Kernels of cooperative launches, and special registers that few use.

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

// out = a / sum(a), the sum in two stages with a barrier of the whole grid between; a second barrier
// before block 0 reads what the last block wrote.
extern "C" __global__ void grid_normalise(float* out, float* part, float* last, const float* a, int n) {
    namespace cg = cooperative_groups;
    cg::grid_group grid = cg::this_grid();
    cg::thread_block block = cg::this_thread_block();
    auto warp = cg::tiled_partition<32>(block);
    __shared__ float sums[32];
    float s = 0;
    for (unsigned long long i = grid.thread_rank(); i < n; i += grid.size()) s += a[i];
    s = cg::reduce(warp, s, cg::plus<float>());
    if (warp.thread_rank() == 0) sums[warp.meta_group_rank()] = s;
    block.sync();
    if (block.thread_rank() == 0) {
        float t = 0;
        for (int k = 0; k < (int)warp.meta_group_size(); k++) t += sums[k];
        part[blockIdx.x] = t;
    }
    grid.sync();
    float total = 0;
    for (int k = 0; k < (int)gridDim.x; k++) total += part[k];
    for (unsigned long long i = grid.thread_rank(); i < n; i += grid.size()) out[i] = a[i] / total;
    grid.sync();
    if (grid.thread_rank() == 0) *last = grid.is_valid() ? out[n - 1] : -1.0f;
}

// A value handed from block to block in a ring by flags: release stores, acquire loads.
extern "C" __global__ void relay(int* value, int* flag) {
    if (threadIdx.x != 0) return;
    int me = blockIdx.x, seen = 0;
    if (me > 0) {
        while (seen == 0) asm volatile("ld.acquire.gpu.s32 %0, [%1];" : "=r"(seen) : "l"(flag + me - 1) : "memory");
    }
    value[me] = me == 0 ? 1 : 2 * value[me - 1] + 1;
    asm volatile("st.release.gpu.s32 [%0], 1;" ::"l"(flag + me) : "memory");
}

// The same with volatile flags between fences.
extern "C" __global__ void relay_fences(int* value, volatile int* flag) {
    if (threadIdx.x != 0) return;
    int me = blockIdx.x;
    if (me > 0) {
        while (flag[me - 1] == 0) {}
        __threadfence();
    }
    value[me] = me == 0 ? 1 : 2 * value[me - 1] + 1;
    __threadfence();
    flag[me] = 1;
}

// The same with nothing that orders the value before the flag.
extern "C" __global__ void relay_unordered(int* value, int* flag) {
    if (threadIdx.x != 0) return;
    int me = blockIdx.x, seen = 0;
    if (me > 0) {
        while (seen == 0) asm volatile("ld.relaxed.gpu.s32 %0, [%1];" : "=r"(seen) : "l"(flag + me - 1) : "memory");
    }
    value[me] = me == 0 ? 1 : 2 * value[me - 1] + 1;
    asm volatile("st.relaxed.gpu.s32 [%0], 1;" ::"l"(flag + me) : "memory");
}

// Two blocks that wait for each other: both must be running.
extern "C" __global__ void meet(int* flag) {
    if (threadIdx.x != 0) return;
    int seen = 0;
    asm volatile("st.release.gpu.s32 [%0], 1;" ::"l"(flag + blockIdx.x) : "memory");
    while (seen == 0) asm volatile("ld.acquire.gpu.s32 %0, [%1];" : "=r"(seen) : "l"(flag + 1 - blockIdx.x) : "memory");
}

extern "C" __global__ void nth_set(unsigned* out, const unsigned* mask, const int* n) {
    int i = threadIdx.x;
    out[i] = __fns(mask[i], i, n[i]);
}

// Clocks only move forward; registers that nothing was passed in are zero.
extern "C" __global__ void special_registers(unsigned* out) {
    unsigned long long t0, t1;
    unsigned lo, hi, v, smem;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t0));
    asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(lo));
    asm volatile("mov.u32 %0, %%globaltimer_hi;" : "=r"(hi));
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t1));
    out[0] = t1 >= t0 && hi <= (unsigned)(t1 >> 32) ? 1 : 0;
    long long c0 = clock64();
    out[1] = clock64() >= c0 && clock() + 1 != 0;
    asm volatile("mov.u32 %0, %%envreg0;" : "=r"(v));
    out[2] = v;
    asm volatile("mov.u32 %0, %%envreg31;" : "=r"(v));
    out[3] = v;
    asm volatile("mov.u32 %0, %%pm3;" : "=r"(v));
    out[4] = v;
    asm volatile("mov.u32 %0, WARP_SZ;" : "=r"(v));
    out[5] = v;
    asm volatile("mov.u32 %0, %%aggr_smem_size;" : "=r"(smem));
    asm volatile("mov.u32 %0, %%total_smem_size;" : "=r"(v));
    out[6] = smem - v;
    out[7] = lo != 0xffffffffu;
}
