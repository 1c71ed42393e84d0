// Convolution: forward, backward to the data, backward to the weight; NHWC, implicit.
//
//   y[n,oy,ox,co] = sum_{ky,kx,ci} w[co,ky,kx,ci] x[n, oy sy - top + ky dy, ox sx - left + kx dx, ci]
//                   + bias[co] + per_image[n,co] + residual[n,oy,ox,co]
//
// x may be two tensors side by side in their channels, and may be enlarged by a power of
// two on the way. A strided backward pass to the data is one launch for each residue of
// the position, so that no inserted zero is multiplied. Names end in the tile: results
// down (pixels; output channels for the weight) x results along. `scattered` reads element
// by element: for channels that do not fill 16 bytes, first and last layers among them.
// See matmul.cuh for layout, accumulation and order.
#include "matmul.cuh"

using Large = Fused<128, 128, 8, 8>;
using Medium = Fused<64, 64, 8, 8>;
using Small = Fused<32, 32, 4, 4>;
using Narrow = Fused<128, 4, 1, 4>;
using Flat = Fused<4, 256, 4, 4>;

ENTRY(conv2d_forward_f32_128x128, ConvGather, 256) { gather<Large, true, true>(p); }
ENTRY(conv2d_forward_f32_64x64, ConvGather, 64, 4) { gather<Medium, true, true>(p); }
ENTRY(conv2d_forward_f32_32x32, ConvGather, 64, 8) { gather<Small, true, true>(p); }
ENTRY(conv2d_forward_f32_128x4, ConvGather, 128, 4) { gather<Narrow, true, true>(p); }
ENTRY(conv2d_forward_f32_scattered_64x64, ConvGather, 64, 4) { gather<Medium, true, false>(p); }
ENTRY(conv2d_forward_f32_scattered_32x32, ConvGather, 64, 8) { gather<Small, true, false>(p); }
ENTRY(conv2d_backward_data_f32_128x128, ConvGather, 256) { gather<Large, false, true>(p); }
ENTRY(conv2d_backward_data_f32_64x64, ConvGather, 64, 4) { gather<Medium, false, true>(p); }
ENTRY(conv2d_backward_data_f32_32x32, ConvGather, 64, 8) { gather<Small, false, true>(p); }
ENTRY(conv2d_backward_data_f32_scattered_64x64, ConvGather, 64, 4) { gather<Medium, false, false>(p); }
ENTRY(conv2d_backward_data_f32_scattered_32x32, ConvGather, 64, 8) { gather<Small, false, false>(p); }
ENTRY(conv2d_backward_weight_f32_128x128, ConvOuter, 256) { outer<Large, true>(p); }
ENTRY(conv2d_backward_weight_f32_64x64, ConvOuter, 64, 4) { outer<Medium, true>(p); }
ENTRY(conv2d_backward_weight_f32_32x32, ConvOuter, 64, 8) { outer<Small, true>(p); }
ENTRY(conv2d_backward_weight_f32_scattered_64x64, ConvOuter, 64, 4) { outer<Medium, false>(p); }
ENTRY(conv2d_backward_weight_f32_scattered_32x32, ConvOuter, 64, 8) { outer<Small, false>(p); }
ENTRY(conv2d_backward_weight_f32_scattered_4x256, ConvOuter, 64, 6) { outer<Flat, false>(p); }

ENTRY(sum_lanes_f32, SumLanes, 256) { sum_lanes<float>(p); }
