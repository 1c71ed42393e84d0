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
// which a reduction may be split are the caller's and are added in order: by the last of the
// blocks that computed them, by those blocks in turn, or by one block that computes them all.
//
//   copies   to shared memory, and where what is copied lies there
//   tiles    how a block multiplies, and gives away what it has added up
//   gather   operands and pass; few.cuh: operands of few channels
//   outer    operands and pass
#pragma once
#include "few.cuh"
#include "gather.cuh"
#include "outer.cuh"
