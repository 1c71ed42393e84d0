// Between f32 and bf16.
//
// Any layout; a thread handles eight consecutive elements: one 128-bit access on the
// bf16 side and two on the other. To bf16 is to nearest even, NaN stays NaN. What is
// added to is widened, and the sum rounded once.
#include "half.cuh"

template <typename To, typename From> INLINE void cast(const Cast &p) {
    Len i = pack_start<8>();
    int count = pack_count<8>(i, p.len);
    if (count == 0) return;
    store((To *)p.y + i, load<8>((const From *)p.x + i, count), count, p.add);
}

ENTRY(cast_to_bf16, Cast, 256) { cast<Bf16, float>(p); }
ENTRY(cast_to_f32, Cast, 256) { cast<float, Bf16>(p); }
