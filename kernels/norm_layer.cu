// Layer normalisation in f32: norm_group.cu's equations, a warp a position.
//
// Backward a block has POSITIONS positions of one image, and goes over them twice: a warp a
// position for m1 and m2, then a thread V channels of all positions for d_x and their part
// of P and Q. Of these the last block of an image adds up the parts, and the last of all
// blocks the images. With gradients of gamma and beta, images that are CLASSES apart count
// as one, so that what the last block adds is short whatever the batch.
// `sums` of the backward pass: [n, parts, 2, channels], then [CLASSES, 2, channels].
#include "norm_exact.cuh"

/// Positions of a block: the terms of an f32 sum.
constexpr int POSITIONS = SHORT;

INLINE double warp_sum(double x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

/// Calls f(channel) for the V channels each that a lane has of a row, and `fold`
/// after every SHORT of them.
template <int V, class F, class G> INLINE void each_channel(int channels, F f, G fold) {
    int left = SHORT;
    for (int c = threadIdx.x % 32 * V; c < channels; c += 32 * V) {
        f(c);
        if (--left == 0) {
            fold();
            left = SHORT;
        }
    }
    fold();
}

template <int V> INLINE void layer_forward(const Norm &p) {
    Len s = (Len)blockIdx.x * (THREADS / 32) + threadIdx.x / 32, image = blockIdx.y;
    if (s >= p.spatial) return;
    Len row = image * p.spatial + s;
    const float *x = (const float *)p.x + row * p.channels;
    float *y = (float *)p.y + row * p.channels;
    double elements = (double)p.channels;
    Sum first, second;
    each_channel<V>(
        p.channels,
        [&](int c) {
            Pack<V> l = read<V>(x + c);
#pragma unroll
            for (int k = 0; k < V; k++) first.add(l[k]);
        },
        [&] { first.fold(); });
    float centre = (float)(warp_sum(first.total) / elements);
    first = Sum();
    each_channel<V>(
        p.channels,
        [&](int c) {
            Pack<V> l = read<V>(x + c);
#pragma unroll
            for (int k = 0; k < V; k++) {
                float d = l[k] - centre;
                first.add(d);
                second.part = fmaf(d, d, second.part);
            }
        },
        [&] {
            first.fold();
            second.fold();
        });
    double of_first = warp_sum(first.total) / elements;
    Statistics of(centre, of_first, warp_sum(second.total) / elements, p.eps);
    if (threadIdx.x % 32 == 0) {
        p.mean[row] = of.mean;
        p.rstd[row] = of.rstd;
    }
    each_channel<V>(
        p.channels,
        [&](int c) {
            float gain[V], bias[V];
            affine<V>(p, image, c, gain, bias);
            Pack<V> l = read<V>(x + c);
#pragma unroll
            for (int k = 0; k < V; k++) {
                float xhat = ((l[k] - of.mean) - of.low) * of.rstd;
                l[k] = activation_value(p.activation, fmaf(xhat, gain[k], bias[k]));
            }
            write<V>(y + c, l, p.add);
        },
        [] {});
}

/// What d_x needs of a position.
struct Position {
    float mean, rstd, m1, m2;
};

template <int V> INLINE void layer_backward(const NormBackward &p) {
    __shared__ Position positions[POSITIONS];
    Len image = blockIdx.y, begin = (Len)blockIdx.x * POSITIONS;
    int count = (int)min((Len)POSITIONS, p.spatial - begin);
    Len from = (image * p.spatial + begin) * p.channels;
    const float *x = (const float *)p.x + from, *d_y = (const float *)p.d_y + from;
    // xhat and dv of a position's channels from c on.
    auto terms = [&](const Position &of, int s, int c, const float(&gain)[V], const float(&bias)[V], Pack<V> &xhat,
                     Pack<V> &dv) {
        Len i = (Len)s * p.channels + c;
        xhat = read<V>(x + i);
        dv = read<V>(d_y + i);
#pragma unroll
        for (int k = 0; k < V; k++) {
            xhat[k] = (xhat[k] - of.mean) * of.rstd;
            dv[k] = dv[k] * activation_slope(p.activation, fmaf(xhat[k], gain[k], bias[k]));
        }
    };

    double elements = (double)p.channels;
    for (int s = threadIdx.x / 32; s < count; s += THREADS / 32) {
        Len row = image * p.spatial + begin + s;
        Position of = {p.mean[row], p.rstd[row], 0.0f, 0.0f};
        if (p.d_x) {
            Sum first, second;
            each_channel<V>(
                p.channels,
                [&](int c) {
                    float gain[V], bias[V];
                    affine<V>(p, image, c, gain, bias);
                    Pack<V> xhat, dv;
                    terms(of, s, c, gain, bias, xhat, dv);
#pragma unroll
                    for (int k = 0; k < V; k++) {
                        float d_xhat = dv[k] * gain[k];
                        first.add(d_xhat);
                        second.part = fmaf(d_xhat, xhat[k], second.part);
                    }
                },
                [&] {
                    first.fold();
                    second.fold();
                });
            of.m1 = (float)(warp_sum(first.total) / elements);
            of.m2 = (float)(warp_sum(second.total) / elements);
        }
        if (threadIdx.x % 32 == 0) positions[s] = of;
    }
    __syncthreads();

    Len part = image * gridDim.x + blockIdx.x;
    for (int c = threadIdx.x * V; c < p.channels; c += THREADS * V) {
        float gain[V], bias[V];
        affine<V>(p, image, c, gain, bias);
        Pack<V> of_p = {}, of_q = {};
#pragma unroll 1
        for (int s = 0; s < count; s++) {
            Position of = positions[s];
            Pack<V> xhat, dv, l;
            terms(of, s, c, gain, bias, xhat, dv);
#pragma unroll
            for (int k = 0; k < V; k++) {
                of_p[k] += dv[k];
                of_q[k] = fmaf(dv[k], xhat[k], of_q[k]);
                l[k] = of.rstd * fmaf(-xhat[k], of.m2, fmaf(dv[k], gain[k], -of.m1));
            }
            if (p.d_x) write<V>((float *)p.d_x + from + (Len)s * p.channels + c, l, p.add);
        }
        if (p.sums) leave_sums<V>(p, p.sums + part * 2 * p.channels, c, of_p.v, of_q.v);
    }
    layer_vectors<float, V, double>(p);
}

ENTRY(norm_forward_layer_f32, Norm, 256) { layer_forward<4>(p); }
ENTRY(norm_forward_layer_odd_f32, Norm, 256) { layer_forward<1>(p); }
ENTRY(norm_backward_layer_f32, NormBackward, 256) { layer_backward<4>(p); }
ENTRY(norm_backward_layer_odd_f32, NormBackward, 256) { layer_backward<1>(p); }
