// Where a head lies, for the attention kernels in f32 and in bf16.
#pragma once
#include "math.cuh"

/// One head of one image.
struct Head {
    Len q, kv;   // first element in q and o, in k and v
    Len queries; // first element in lse and delta
    Len row;     // from token to token

    template <class P> INLINE explicit Head(const P &p) {
        Len image = blockIdx.z, head = blockIdx.y;
        row = (Len)p.heads * p.head_dim;
        q = image * p.s_q * row + head * p.head_dim;
        kv = image * p.s_kv * row + head * p.head_dim;
        queries = (image * p.heads + head) * p.s_q;
    }
};
