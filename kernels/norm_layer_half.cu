// Layer normalisation in bf16: norm_group.cu's equations, with statistics, gamma, beta and
// gradients of vectors in f32. Channels are a multiple of 8.
//
// A warp has a position at a time, a lane CH columns of 8 channels of it, which it reads
// once and keeps; mean and variance are of what it keeps, in two passes. A block has
// several positions of one image, and gain and bias of every channel in shared memory.
// Backward each warp adds up P and Q of its positions there too; a block leaves their sums,
// a part of the image's, which the last blocks add up (layer_vectors). What is an image's
// own does not depend on the batch.
#include "norm_half.cuh"

/// Positions of a block; backward it writes 8 bytes a channel for them all.
constexpr int POSITIONS = 32, BACKWARD_POSITIONS = 64;

/// Arrays of a float a channel in shared memory, in quads: the first four channels of all
/// columns, then the others.
struct Channels {
    int columns;

    INLINE float4 *quad(float *array, int column, int half) const {
        return (float4 *)array + half * columns + column;
    }

    INLINE Pack<8> read(float *array, int column) const {
        float4 a = *quad(array, column, 0), b = *quad(array, column, 1);
        return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
    }

    INLINE void write(float *array, int column, const Pack<8> &x) const {
        *quad(array, column, 0) = make_float4(x[0], x[1], x[2], x[3]);
        *quad(array, column, 1) = make_float4(x[4], x[5], x[6], x[7]);
    }
};

/// Gain and bias of all channels of an image; after it, they may be read.
template <class P> INLINE void stage_affine(const P &p, const Channels &channels, float *gain, float *bias) {
    for (int column = threadIdx.x; column < channels.columns; column += blockDim.x) {
        int c = column * 8;
        Pack<8> g, b = {};
#pragma unroll
        for (int k = 0; k < 8; k++) g[k] = 1.0f;
        if (p.gamma) g = load<8>(p.gamma + c, 8);
        if (p.beta) b = load<8>(p.beta + c, 8);
        if (p.scale_shift) {
            const Bf16 *s = (const Bf16 *)p.scale_shift + (Len)blockIdx.y * 2 * p.channels + c;
            Pack<8> scale = load<8>(s, 8), shift = load<8>(s + p.channels, 8);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                g[k] = g[k] * (1.0f + scale[k]);
                b[k] = fmaf(b[k], 1.0f + scale[k], shift[k]);
            }
        }
        channels.write(gain, column, g);
        channels.write(bias, column, b);
    }
    __syncthreads();
}

/// Activations, which few layer norms have: called, for inlined in every channel of a lane they
/// would be most of the file.
static __noinline__ __device__ float value(Word activation, float x) { return activation_value(activation, x); }
static __noinline__ __device__ float slope(Word activation, float x) { return activation_slope(activation, x); }

template <int CH> INLINE void layer_forward(const Norm &p) {
    extern __shared__ __align__(16) float shared[];
    Channels channels = {p.channels / 8};
    float *gain = shared, *bias = gain + p.channels;
    stage_affine(p, channels, gain, bias);
    int lane = threadIdx.x % 32, end = min((int)p.spatial, (int)(blockIdx.x + 1) * POSITIONS);
    float elements = (float)p.channels;
    for (int s = blockIdx.x * POSITIONS + threadIdx.x / 32; s < end; s += blockDim.x / 32) {
        Len row = (Len)blockIdx.y * p.spatial + s;
        const Raw<8> *x = (const Raw<8> *)((const Bf16 *)p.x + row * p.channels);
        Raw<8> kept[CH];
        float sum = 0.0f, squares = 0.0f;
#pragma unroll
        for (int i = 0; i < CH; i++) {
            if (lane + 32 * i >= channels.columns) continue;
            kept[i] = x[lane + 32 * i];
            Pack<8> v = kept[i].widened();
#pragma unroll
            for (int k = 0; k < 8; k++) sum += v[k];
        }
        float mean = warp_sum(sum) / elements;
#pragma unroll
        for (int i = 0; i < CH; i++) {
            if (lane + 32 * i >= channels.columns) continue;
            Pack<8> v = kept[i].widened();
#pragma unroll
            for (int k = 0; k < 8; k++) squares = fmaf(v[k] - mean, v[k] - mean, squares);
        }
        float rstd = 1.0f / sqrtf(warp_sum(squares) / elements + p.eps);
        if (lane == 0) {
            p.mean[row] = mean;
            p.rstd[row] = rstd;
        }
#pragma unroll
        for (int i = 0; i < CH; i++) {
            int column = lane + 32 * i;
            if (column >= channels.columns) continue;
            Pack<8> v = kept[i].widened(), g = channels.read(gain, column), b = channels.read(bias, column);
#pragma unroll
            for (int k = 0; k < 8; k++)
                v[k] = fmaf((v[k] - mean) * rstd, g[k], b[k]);
            if (p.activation) {
#pragma unroll
                for (int k = 0; k < 8; k++) v[k] = value(p.activation, v[k]);
            }
            store((Bf16 *)p.y + row * p.channels + column * 8, v, 8, p.add);
        }
    }
}

template <int CH> INLINE void layer_backward(const NormBackward &p) {
    extern __shared__ __align__(16) float shared[];
    Channels channels = {p.channels / 8};
    int warps = blockDim.x / 32, lane = threadIdx.x % 32;
    float *gain = shared, *bias = gain + p.channels, *sums = bias + p.channels;
    float *of_p = sums + threadIdx.x / 32 * 2 * p.channels, *of_q = of_p + p.channels;
    for (int i = threadIdx.x; i < warps * 2 * p.channels; i += blockDim.x) sums[i] = 0.0f;
    stage_affine(p, channels, gain, bias);
    int end = min((int)p.spatial, (int)(blockIdx.x + 1) * BACKWARD_POSITIONS);
    float elements = (float)p.channels;
    for (int s = blockIdx.x * BACKWARD_POSITIONS + threadIdx.x / 32; s < end; s += warps) {
        Len row = (Len)blockIdx.y * p.spatial + s;
        const Raw<8> *x = (const Raw<8> *)((const Bf16 *)p.x + row * p.channels);
        const Raw<8> *d_y = (const Raw<8> *)((const Bf16 *)p.d_y + row * p.channels);
        float mean = of_lane_0(p.mean + row), rstd = of_lane_0(p.rstd + row);
        Raw<8> kept[2][CH];
        // xhat and dv gain of a column, of which all later is made.
        auto terms = [&](int i, Pack<8> &xhat, Pack<8> &dv) {
            int column = lane + 32 * i;
            Pack<8> g = channels.read(gain, column), b = channels.read(bias, column);
            xhat = kept[0][i].widened();
            dv = kept[1][i].widened();
#pragma unroll
            for (int k = 0; k < 8; k++) {
                xhat[k] = (xhat[k] - mean) * rstd;
                if (p.activation) dv[k] *= slope(p.activation, fmaf(xhat[k], g[k], b[k]));
            }
            return g;
        };
        float first = 0.0f, second = 0.0f;
#pragma unroll
        for (int i = 0; i < CH; i++) {
            int column = lane + 32 * i;
            if (column >= channels.columns) continue;
            kept[0][i] = x[column];
            kept[1][i] = d_y[column];
            Pack<8> xhat, dv, g = terms(i, xhat, dv);
            Pack<8> sum_p = channels.read(of_p, column), sum_q = channels.read(of_q, column);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                sum_p[k] += dv[k];
                sum_q[k] = fmaf(dv[k], xhat[k], sum_q[k]);
                float d_xhat = dv[k] * g[k];
                first += d_xhat;
                second = fmaf(d_xhat, xhat[k], second);
            }
            channels.write(of_p, column, sum_p);
            channels.write(of_q, column, sum_q);
        }
        if (!p.d_x) continue;
        float m1 = warp_sum(first) / elements, m2 = warp_sum(second) / elements;
#pragma unroll
        for (int i = 0; i < CH; i++) {
            int column = lane + 32 * i;
            if (column >= channels.columns) continue;
            Pack<8> xhat, dv, g = terms(i, xhat, dv);
#pragma unroll
            for (int k = 0; k < 8; k++) dv[k] = rstd * fmaf(-xhat[k], m2, fmaf(dv[k], g[k], -m1));
            store((Bf16 *)p.d_x + row * p.channels + column * 8, dv, 8, p.add);
        }
    }
    __syncthreads();
    if (!p.sums) return;
    Len part = (Len)blockIdx.y * gridDim.x + blockIdx.x;
    for (int column = threadIdx.x; column < channels.columns; column += blockDim.x) {
        Pack<8> total_p = {}, total_q = {};
        for (int w = 0; w < warps; w++) {
            Pack<8> warp_p = channels.read(sums + w * 2 * p.channels, column);
            Pack<8> warp_q = channels.read(sums + (w * 2 + 1) * p.channels, column);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                total_p[k] += warp_p[k];
                total_q[k] += warp_q[k];
            }
        }
        leave_sums<8>(p, p.sums + part * 2 * p.channels, column * 8, total_p.v, total_q.v);
    }
    layer_vectors<Bf16, 8, float>(p);
}

ENTRY(norm_forward_layer_1024_bf16, Norm, 256) { layer_forward<4>(p); }
ENTRY(norm_forward_layer_2048_bf16, Norm, 256, 2) { layer_forward<8>(p); }
ENTRY(norm_backward_layer_1024_bf16, NormBackward, 128, 4) { layer_backward<4>(p); }
ENTRY(norm_backward_layer_2048_bf16, NormBackward, 128, 1) { layer_backward<8>(p); }
