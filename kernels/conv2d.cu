// Convolution: forward, backward to the data, backward to the weight; NHWC, implicit.
//
//   y[n,oy,ox,co] = sum_{ky,kx,ci} w[co,ky,kx,ci] x[n, oy sy - top + ky dy, ox sx - left + kx dx, ci]
//                   + bias[co] + per_image[n,co] + residual[n,oy,ox,co]
//
// x may be two tensors side by side in their channels, and may be enlarged by a power of
// two on the way. A strided backward pass to the data takes the residues of the position
// apart (blockIdx.z), so that no inserted zero is multiplied. Names end in the tile: results
// down (pixels; output channels for the weight) x results along. Where channels do not fill
// 16 bytes, `few`, `inputs` and `outputs` bring the pixels of the few channels to shared
// memory as they are (few.cuh), `narrow` reads the weight by elements, and `scattered` reads
// everything so.
// See matmul.cuh for layout, accumulation and order.
#include "matmul.cuh"

using Large = Fused<128, 128, 8, 8>;
using Medium = Fused<64, 64, 8, 8>;
using Small = Fused<32, 32, 4, 4>;
using Narrow = Fused<128, 4, 1, 4>;
using Flat = Fused<4, 256, 4, 4>;

ENTRY(conv2d_forward_f32_128x128, ConvGather, 256) { gather<Large, true>(p); }
ENTRY(conv2d_forward_f32_64x64, ConvGather, 64, 4) { gather<Medium, true>(p); }
ENTRY(conv2d_forward_f32_32x32, ConvGather, 64, 8) { gather<Small, true>(p); }
ENTRY(conv2d_forward_f32_128x4, ConvGather, 128, 4) { gather<Narrow, true>(p); }
ENTRY(conv2d_forward_f32_few_64x64, ConvGather, 64, 4) { gather_few<Medium, true>(p); }
ENTRY(conv2d_forward_f32_few_32x32, ConvGather, 64, 8) { gather_few<Small, true>(p); }
ENTRY(conv2d_forward_f32_scattered_64x64, ConvGather, 64, 4) { gather<Medium, true, SCATTERED>(p); }
ENTRY(conv2d_forward_f32_scattered_32x32, ConvGather, 64, 8) { gather<Small, true, SCATTERED>(p); }
ENTRY(conv2d_backward_data_f32_128x128, ConvGather, 256) { gather<Large, false>(p); }
ENTRY(conv2d_backward_data_f32_64x64, ConvGather, 64, 4) { gather<Medium, false>(p); }
ENTRY(conv2d_backward_data_f32_32x32, ConvGather, 64, 8) { gather<Small, false>(p); }
ENTRY(conv2d_backward_data_f32_narrow_128x4, ConvGather, 128, 4) { gather<Narrow, false, NARROW>(p); }
ENTRY(conv2d_backward_data_f32_few_64x64, ConvGather, 64, 4) { gather_few<Medium, false>(p); }
ENTRY(conv2d_backward_data_f32_few_32x32, ConvGather, 64, 8) { gather_few<Small, false>(p); }
ENTRY(conv2d_backward_data_f32_scattered_64x64, ConvGather, 64, 4) { gather<Medium, false, SCATTERED>(p); }
ENTRY(conv2d_backward_data_f32_scattered_32x32, ConvGather, 64, 8) { gather<Small, false, SCATTERED>(p); }
ENTRY(conv2d_backward_weight_f32_128x128, ConvOuter, 256) { outer<Large>(p); }
ENTRY(conv2d_backward_weight_f32_64x64, ConvOuter, 64, 4) { outer<Medium>(p); }
ENTRY(conv2d_backward_weight_f32_32x32, ConvOuter, 64, 8) { outer<Small>(p); }
ENTRY(conv2d_backward_weight_f32_inputs_64x64, ConvOuter, 64, 4) { outer<Medium, FewInputs<Medium>>(p); }
ENTRY(conv2d_backward_weight_f32_inputs_32x32, ConvOuter, 64, 8) { outer<Small, FewInputs<Small>>(p); }
ENTRY(conv2d_backward_weight_f32_outputs_4x256, ConvOuter, 64, 6) { outer<Flat, FewOutputs<Flat>>(p); }
ENTRY(conv2d_backward_weight_f32_scattered_64x64, ConvOuter, 64, 4) { outer<Medium, OuterElements<Medium>>(p); }
ENTRY(conv2d_backward_weight_f32_scattered_32x32, ConvOuter, 64, 8) { outer<Small, OuterElements<Small>>(p); }
ENTRY(conv2d_backward_weight_f32_scattered_4x256, ConvOuter, 64, 6) { outer<Flat, OuterElements<Flat>>(p); }
