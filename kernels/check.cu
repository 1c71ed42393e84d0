// Whether a tensor holds a NaN or an infinity.
//
// x: [len]; a thread looks at 16 bytes, a block reports at most once. The
// flag is or-ed, so the result does not depend on order.
#include "half.cuh"

template <typename T> INLINE void check(const Check &p) {
    constexpr int N = EACH<T>;
    Len i = pack_start<N>();
    int count = pack_count<N>(i, p.len);
    Pack<N> x = {};
    if (count > 0) x = load<N>((const T *)p.x + i, count);
    bool bad = false;
#pragma unroll
    for (int k = 0; k < N; k++) bad |= !isfinite(x[k]);
    if (__syncthreads_or(bad) && threadIdx.x == 0) atomicOr(p.found, 1u);
}

ENTRY(check_f32, Check, 256) { check<float>(p); }
ENTRY(check_bf16, Check, 256) { check<Bf16>(p); }
