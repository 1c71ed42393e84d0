// A matrix along one axis: y[o,j,i] = sum_k m[j,k] x[o,k,i], in the order of k, zeros
// of the matrix left out.
//
// x: [outer, from, inner], y: [outer, to, inner], f32; a thread an element of y.
#include "common.cuh"

ENTRY(axis_map_f32, AxisMap, 256) {
    Len at = (Len)blockIdx.x * 256 + threadIdx.x;
    if (at >= p.outer * p.to * p.inner) return;
    Len i = at % p.inner, row = at / p.inner;
    Word j = (Word)(row % p.to);
    const float *x = p.x + row / p.to * p.from * p.inner + i;
    float sum = p.add ? p.y[at] : 0.0f;
    for (Word k = 0; k < p.from; k++) {
        float c = p.matrix[p.transposed ? (Len)k * p.to + j : (Len)j * p.from + k];
        if (c != 0.0f) sum = fmaf(c, x[k * (Len)p.inner], sum);
    }
    p.y[at] = sum;
}
