// Dropout both ways: y = x scale where the element's word is at least the threshold,
// else 0. The mask is drawn again backward, never stored.
//
// x, y: [n, len], f32 or bf16; a thread one or two counters of four words, blocks over an
// image along x, images along y. Bits as on the CPU.
#include "half.cuh"
#include "random.cuh"

template <typename T> INLINE void dropout(const Dropout &p) {
    constexpr int N = EACH<T>;
    Len e = pack_start<N>();
    int count = pack_count<N>(e, p.len);
    if (count == 0) return;
    Len image = blockIdx.y;
    Pack<N> x = load<N>((const T *)p.x + image * p.len + e, count), y;
#pragma unroll
    for (int j = 0; j < N; j += GROUP) {
        uint4 w = random_words(p.keys + image * 4, DROPOUT, p.layer, (Word)((e + j) / GROUP));
        Word words[GROUP] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int k = 0; k < GROUP; k++) y[j + k] = x[j + k] * (words[k] >= p.threshold ? p.scale : 0.0f);
    }
    store((T *)p.y + image * p.len + e, y, count, p.add);
}

ENTRY(dropout_f32, Dropout, 256) { dropout<float>(p); }
ENTRY(dropout_bf16, Dropout, 256) { dropout<Bf16>(p); }
