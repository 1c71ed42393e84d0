// Dropout both ways: y = x scale where the element's word is at least the threshold,
// else 0. The mask is drawn again backward, never stored.
//
// x, y: [n, len] f32; a thread a counter of four words, blocks over an image along
// x, images along y. Bits as on the CPU.
#include "random.cuh"

ENTRY(dropout_f32, Dropout, 256) {
    Len e = group_start();
    int count = group_count(e, p.len);
    if (count == 0) return;
    Len image = blockIdx.y;
    uint4 w = random_words(p.keys + image * 4, DROPOUT, p.layer, (Word)(e / GROUP));
    Word words[GROUP] = {w.x, w.y, w.z, w.w};
    Group x = load(p.x + image * p.len + e, count), y;
#pragma unroll
    for (int k = 0; k < GROUP; k++) y[k] = x[k] * (words[k] >= p.threshold ? p.scale : 0.0f);
    store(p.y + image * p.len + e, y, count, p.add);
}
