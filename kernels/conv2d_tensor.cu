// Convolution on tensor cores: the passes of conv2d.cu with bf16 in memory, or with f32 in
// memory and operands rounded to tf32. Weight gradients and partial sums are f32.
//
// A warp of the large tiles computes 64 x 64 results: per 16 bytes of k of each row, 4 + 4
// ldmatrix.x4 feed 32 mma, a ratio of 4. See matmul.cuh for layout and order, conv2d.cu for
// the equation and the names.
#include "matmul.cuh"

using Large16 = Tensor<Bf16, 128, 128, 2, 2>;
using Medium16 = Tensor<Bf16, 64, 64, 2, 2>;
using Small16 = Tensor<Bf16, 32, 32, 1, 2>;
using Narrow16 = Tensor<Bf16, 128, 16, 4, 1>;
using Tall16 = Tensor<Bf16, 128, 32, 4, 1>;
using Flat16 = Tensor<Bf16, 16, 128, 1, 4>;
using Large32 = Tensor<float, 128, 128, 2, 2>;
using Medium32 = Tensor<float, 64, 64, 2, 2>;
using Narrow32 = Tensor<float, 128, 16, 4, 1>;
using Small32 = Tensor<float, 32, 32, 1, 2>;

ENTRY(conv2d_forward_bf16_128x128, ConvGather, 128) { gather<Large16, true>(p); }
ENTRY(conv2d_forward_bf16_64x64, ConvGather, 128) { gather<Medium16, true>(p); }
ENTRY(conv2d_forward_bf16_32x32, ConvGather, 64) { gather<Small16, true>(p); }
ENTRY(conv2d_forward_bf16_128x16, ConvGather, 128) { gather<Narrow16, true>(p); }
ENTRY(conv2d_forward_bf16_few_128x128, ConvGather, 128) { gather_few<Large16, true>(p); }
ENTRY(conv2d_forward_bf16_few_32x32, ConvGather, 64) { gather_few<Small16, true>(p); }
ENTRY(conv2d_forward_bf16_scattered_32x32, ConvGather, 64) { gather<Small16, true, SCATTERED>(p); }
ENTRY(conv2d_backward_data_bf16_128x128, ConvGather, 128) { gather<Large16, false>(p); }
ENTRY(conv2d_backward_data_bf16_64x64, ConvGather, 128) { gather<Medium16, false>(p); }
ENTRY(conv2d_backward_data_bf16_32x32, ConvGather, 64) { gather<Small16, false>(p); }
ENTRY(conv2d_backward_data_bf16_narrow_128x16, ConvGather, 128) { gather<Narrow16, false, NARROW>(p); }
ENTRY(conv2d_backward_data_bf16_few_128x128, ConvGather, 128) { gather_few<Large16, false>(p); }
ENTRY(conv2d_backward_data_bf16_few_32x32, ConvGather, 64) { gather_few<Small16, false>(p); }
ENTRY(conv2d_backward_data_bf16_scattered_32x32, ConvGather, 64, 8) { gather<Small16, false, SCATTERED>(p); }
ENTRY(conv2d_backward_weight_bf16_128x128, ConvOuter, 128) { outer<Large16>(p); }
ENTRY(conv2d_backward_weight_bf16_64x64, ConvOuter, 128) { outer<Medium16>(p); }
ENTRY(conv2d_backward_weight_bf16_32x32, ConvOuter, 64, 8) { outer<Small16>(p); }
ENTRY(conv2d_backward_weight_bf16_inputs_128x32, ConvOuter, 128) { outer<Tall16, FewInputs<Tall16>>(p); }
ENTRY(conv2d_backward_weight_bf16_outputs_16x128, ConvOuter, 128, 4) { outer<Flat16, FewOutputs<Flat16>>(p); }
ENTRY(conv2d_backward_weight_bf16_scattered_32x32, ConvOuter, 64) { outer<Small16, OuterElements<Small16>>(p); }
ENTRY(conv2d_forward_tf32_128x128, ConvGather, 128) { gather<Large32, true>(p); }
ENTRY(conv2d_forward_tf32_64x64, ConvGather, 128) { gather<Medium32, true>(p); }
ENTRY(conv2d_forward_tf32_128x16, ConvGather, 128) { gather<Narrow32, true>(p); }
ENTRY(conv2d_forward_tf32_32x32, ConvGather, 64) { gather<Small32, true>(p); }
ENTRY(conv2d_backward_data_tf32_128x128, ConvGather, 128, 2) { gather<Large32, false>(p); }
ENTRY(conv2d_backward_data_tf32_64x64, ConvGather, 128) { gather<Medium32, false>(p); }
ENTRY(conv2d_backward_data_tf32_32x32, ConvGather, 64) { gather<Small32, false>(p); }
ENTRY(conv2d_backward_weight_tf32_128x128, ConvOuter, 128) { outer<Large32>(p); }
ENTRY(conv2d_backward_weight_tf32_64x64, ConvOuter, 128) { outer<Medium32>(p); }
ENTRY(conv2d_backward_weight_tf32_32x32, ConvOuter, 64, 8) { outer<Small32>(p); }
