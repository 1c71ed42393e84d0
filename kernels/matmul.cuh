// A convolution's three passes as products of matrices that are never formed.
//
//   gather   y[pixel, column] = sum over (tap, channel) of x[source(pixel, tap), channel] w
//            forward (columns are output channels) and backward to the data (input channels)
//   outer    d_w[out, (tap, channel)] = sum over pixels of d_y[pixel, out] x[source(pixel, tap), channel]
//
// A block computes one tile of the result. It walks the reduction in tiles of 128 bytes of
// each row (32 f32), which cp.async brings into shared memory ahead of their use; zeros stand
// for padding and for what lies past an end. The source position of a row is worked out
// when the tap changes, so the loop holds no division.
//
// Layout of a tile in shared memory: "rows" when the reduction is contiguous in memory (x
// gathered, the forward weight): [row][8 chunks of 16 bytes], chunk c of row r stored at
// c ^ swizzle(r); "columns" when it is not (d_y, the backward weight): [k][row].
//
// Accumulation is f32 in one chain an element, in the order (tap, channel) or (pixel):
//   f32    fused multiply-adds; results are as exact as the CPU's
//   tf32   f32 in memory, operands rounded to tf32 (to nearest, ties away), tensor cores
//   bf16   bf16 in memory, tensor cores
// Which tile shape computes an element does not change its bits; the parts ("lanes") in
// which a reduction may be split are the caller's and are added in order.
//
//   copies   to shared memory, and where what is copied lies there
//   tiles    how a block multiplies, and gives away what it has added up
//   gather   operands and pass; few.cuh: operands of few channels
//   outer    operands and pass
#pragma once
#include "few.cuh"
#include "gather.cuh"
#include "outer.cuh"

/// Combines the lanes of a split reduction in order; a thread has GROUP results.
template <typename T> INLINE void sum_lanes(const SumLanes &p) {
    Len i = group_start(), size = p.len + p.len2;
    int count = group_count(i, size);
    if (count == 0) return;
    Group sum = load(p.partial + i, count);
    for (int lane = 1; lane < p.lanes; lane++) {
        Group g = load(p.partial + lane * size + i, count);
#pragma unroll
        for (int k = 0; k < GROUP; k++) sum[k] += g[k];
    }
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        Len at = i + k;
        if (k >= count) continue;
        if (at >= p.len) {
            if (p.y2) put(p.y2 + (at - p.len), sum[k], p.add2);
            continue;
        }
        if (p.bias) sum[k] += p.bias[at % p.channels];
        if (p.per_image) {
            sum[k] += (float)((const T *)p.per_image)[at / p.image_len * p.channels + at % p.channels];
        }
        if (p.residual) sum[k] += (float)((const T *)p.residual)[at];
    }
    if (!p.y || i >= p.len) return;
    int own = (int)min((Len)count, p.len - i);
    T *y = (T *)p.y + i;
    if constexpr (sizeof(T) == 4) {
        store(y, sum, own, p.add);
    } else {
#pragma unroll
        for (int k = 0; k < GROUP; k++)
            if (k < own) y[k] = (T)(p.add ? sum[k] + (float)y[k] : sum[k]);
    }
}
