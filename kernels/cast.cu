// Between f32 and bf16.
//
// Any layout; a thread has four consecutive elements, two threads share a 128-bit access
// of bf16. To bf16 is to nearest even, NaN stays NaN. What is added to is widened, and
// the sum rounded once.
#include "half.cuh"

template <typename To, typename From> INLINE void cast(const Cast &p) {
    Len i = group_start();
    int count = group_count(i, p.len);
    store_four((To *)p.y + i, load_four((const From *)p.x + i, count), count, p.add);
}

ENTRY(cast_to_bf16, Cast, 256) { cast<Bf16, float>(p); }
ENTRY(cast_to_f32, Cast, 256) { cast<float, Bf16>(p); }
