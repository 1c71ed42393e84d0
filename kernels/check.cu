// Whether a tensor holds a NaN or an infinity.
//
// x: [len] f32; a thread looks at four elements, a block reports at most once. The
// flag is or-ed, so the result does not depend on order.
#include "common.cuh"

ENTRY(check_f32, Check, 256) {
    Len i = group_start();
    int count = group_count(i, p.len);
    Group x = {0, 0, 0, 0};
    if (count > 0) x = load(p.x + i, count);
    bool bad = false;
#pragma unroll
    for (int k = 0; k < GROUP; k++) bad |= !isfinite(x[k]);
    if (__syncthreads_or(bad) && threadIdx.x == 0) atomicOr(p.found, 1u);
}
