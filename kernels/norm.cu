// Group and layer normalisation with affine map, scale-shift and activation fused.
//
//   xhat = (x - mean) rstd, v = xhat gain + bias, y = f(v)
//   gain = gamma (1 + scale), bias = beta (1 + scale) + shift, of image and channel
//
// Backward, with dv = d_y f'(v): P = sum dv and Q = sum dv xhat over the positions
// of an image and channel give every gradient of a vector and, weighted by the gain
// over a domain, m1 and m2 of
//   d_x = rstd (dv gain - m1 - xhat m2).
//
// x: [n, spatial, channels] f32; of a group norm also two tensors side by side in channels,
// so that a concatenation need not be formed. Its gradient is then two tensors too, to which
// what other readers of the concatenation left in one (`joined`) is added.
// Group: one block a slice of whole groups of one image (at least a sector of
// channels wide). The block's threads stand in a grid of columns (V channels) x rows
// (positions); where the slice fits, it is read once and kept in shared memory.
// Layer: one warp a position.
// Sums: f32 over 16 terms, f64 over those, then a fixed tree; mean corrected by what
// the second sweep finds. Nothing depends on the batch.
#include "math.cuh"
#include "norm.cuh"

constexpr int THREADS = 256;
constexpr int SHORT = 16; // terms of an f32 sum

/// V consecutive floats: one access of 16 bytes where V is 4.
template <int V> struct Lanes {
    float v[V];
    INLINE float &operator[](int k) { return v[k]; }
    INLINE float operator[](int k) const { return v[k]; }
};

template <int V> INLINE Lanes<V> read(const float *p) {
    Lanes<V> l;
    if constexpr (V == 4) {
        float4 f = *(const float4 *)p;
        l = {f.x, f.y, f.z, f.w};
    } else {
        l[0] = *p;
    }
    return l;
}

template <int V> INLINE void write(float *p, Lanes<V> l) {
    if constexpr (V == 4) *(float4 *)p = make_float4(l[0], l[1], l[2], l[3]);
    else *p = l[0];
}

template <int V> INLINE void write_or_add(float *p, Lanes<V> l, bool add) {
    if (add) {
        Lanes<V> old = read<V>(p);
#pragma unroll
        for (int k = 0; k < V; k++) l[k] = old[k] + l[k];
    }
    write<V>(p, l);
}

/// Gain and bias of an image's channels from c on.
template <int V, class P>
INLINE void affine(const P &p, Len image, int c, float (&gain)[V], float (&bias)[V]) {
#pragma unroll
    for (int k = 0; k < V; k++) {
        gain[k] = p.gamma ? p.gamma[c + k] : 1.0f;
        bias[k] = p.beta ? p.beta[c + k] : 0.0f;
        if (p.scale_shift) {
            const float *s = p.scale_shift + image * 2 * p.channels;
            float scale = 1.0f + s[c + k];
            gain[k] = gain[k] * scale;
            bias[k] = bias[k] * scale + s[p.channels + c + k];
        }
    }
}

/// A sum of many floats: f32 over SHORT terms, f64 over those.
struct Sum {
    float part = 0.0f;
    double total = 0.0;
    INLINE void add(float x) { part += x; }
    INLINE void fold() {
        total += (double)part;
        part = 0.0f;
    }
};

/// Mean, what its rounding lost, and rstd, from the mean distance and mean squared
/// distance to a centre near the mean.
struct Statistics {
    float mean, low, rstd;
    INLINE Statistics(float centre, double first, double second, float eps) {
        double exact = (double)centre + first;
        mean = (float)exact;
        low = (float)(exact - (double)mean);
        double variance = second - first * first;
        rstd = (float)(1.0 / sqrt((variance > 0.0 ? variance : 0.0) + (double)eps));
    }
};

/// Where a thread of a group norm's block stands.
template <int V> struct Place {
    Len image;
    int from;         // first channel of the block's slice
    int columns;      // V channels each, of the slice
    int at_once;      // columns the threads cover at once
    int column, row;  // of this thread
    int rows;         // rows of threads
    bool active;
    int group_columns; // columns of a group, at once
    int group;         // of this thread, within the slice
    int in_group;      // its column within the group

    INLINE Place(int channels, int groups, int slice) {
        int t = threadIdx.x, group_len = channels / groups;
        image = blockIdx.y;
        from = blockIdx.x * slice;
        columns = min(slice, channels - from) / V;
        at_once = min(columns, THREADS);
        rows = THREADS / at_once;
        row = t / at_once;
        column = t - row * at_once;
        active = row < rows;
        group_columns = min(group_len / V, at_once);
        group = column / group_columns;
        in_group = column - group * group_columns;
    }

    /// Calls f(position, offset in the slice's copy) for the thread's positions of
    /// column c, and `fold` after every SHORT of them.
    template <class F, class G> INLINE void each(Len spatial, int c, F f, G fold) const {
        if (!active) return;
        int left = SHORT;
        for (Len s = row; s < spatial; s += rows) {
            f(s, (int)(s * columns + c) * V);
            if (--left == 0) {
                fold();
                left = SHORT;
            }
        }
        fold();
    }

    /// Sums over the rows of threads, left to those of row 0.
    template <int N> INLINE void over_rows(double (*sums)[THREADS], const double (&x)[N]) const {
        int t = threadIdx.x;
#pragma unroll
        for (int i = 0; i < N; i++) sums[i][t] = x[i];
        __syncthreads();
        for (int half = 1 << (31 - __clz(rows)); half > 0; half >>= 1) {
            if (active && row < half && row + half < rows) {
#pragma unroll
                for (int i = 0; i < N; i++) sums[i][t] += sums[i][t + half * at_once];
            }
            __syncthreads();
        }
    }

    /// Sums of row 0 over the columns of each group; every thread gets its group's.
    template <int N> INLINE void over_group(double (*sums)[THREADS], double (&x)[N]) const {
        int t = threadIdx.x;
        for (int half = 1 << (31 - __clz(group_columns)); half > 0; half >>= 1) {
            if (t < at_once && in_group < half && in_group + half < group_columns) {
#pragma unroll
                for (int i = 0; i < N; i++) sums[i][t] += sums[i][t + half];
            }
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = sums[i][group * group_columns];
        __syncthreads();
    }

    /// x summed over the threads of each group; every thread gets its group's.
    template <int N> INLINE void sum(double (*sums)[THREADS], double (&x)[N]) const {
        over_rows<N>(sums, x);
        over_group<N>(sums, x);
    }
};

template <int V> INLINE void group_forward(const Norm &p) {
    extern __shared__ __align__(16) float cache[];
    __shared__ double sums[2][THREADS];
    Place<V> at(p.channels, p.groups, p.slice);
    auto source = [&](int c) {
        return Source<const float>(p.x, p.x2, p.channels, p.x2_channels, at.image, p.spatial, at.from + c * V);
    };
    double elements = (double)(p.spatial * (p.channels / p.groups));

    Sum first, second;
    for (int c = at.column; c < at.columns; c += THREADS) {
        Source<const float> x = source(c);
        at.each(
            p.spatial, c,
            [&](Len s, int kept) {
                Lanes<V> l = read<V>(x.at(s));
                if (p.cached) write<V>(cache + kept, l);
#pragma unroll
                for (int k = 0; k < V; k++) first.add(l[k]);
            },
            [&] { first.fold(); });
    }
    double totals[2] = {first.total, 0.0};
    at.sum(sums, totals);
    float centre = (float)(totals[0] / elements);

    // A thread finds in the cache what it wrote itself.
    auto again = [&](const Source<const float> &x, Len s, int kept) {
        return read<V>(p.cached ? cache + kept : x.at(s));
    };
    first = Sum();
    for (int c = at.column; c < at.columns; c += THREADS) {
        Source<const float> x = source(c);
        at.each(
            p.spatial, c,
            [&](Len s, int kept) {
                Lanes<V> l = again(x, s, kept);
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
    }
    totals[0] = first.total;
    totals[1] = second.total;
    at.sum(sums, totals);
    Statistics of(centre, totals[0] / elements, totals[1] / elements, p.eps);
    if (at.active && at.row == 0 && at.in_group == 0) {
        int group_len = p.channels / p.groups;
        Len domain = at.image * p.groups + at.from / group_len + at.group;
        p.mean[domain] = of.mean;
        p.rstd[domain] = of.rstd;
    }

    for (int c = at.column; c < at.columns; c += THREADS) {
        Source<const float> x = source(c);
        float *y = p.y + at.image * p.spatial * p.channels + at.from + c * V;
        float gain[V], bias[V];
        affine<V>(p, at.image, at.from + c * V, gain, bias);
#pragma unroll
        for (int k = 0; k < V; k++) {
            gain[k] = gain[k] * of.rstd;
            bias[k] = bias[k] - of.low * gain[k];
        }
        at.each(
            p.spatial, c,
            [&](Len s, int kept) {
                Lanes<V> l = again(x, s, kept);
#pragma unroll
                for (int k = 0; k < V; k++) {
                    l[k] = activation_value(p.activation, fmaf(l[k] - of.mean, gain[k], bias[k]));
                }
                write_or_add<V>(y + s * p.channels, l, p.add);
            },
            [] {});
    }
}

template <int V> INLINE void group_backward(const NormBackward &p) {
    extern __shared__ __align__(16) float cache[];
    __shared__ double sums[2 * V][THREADS];
    Place<V> at(p.channels, p.groups, p.slice);
    auto source = [&](int c) {
        return Source<const float>(p.x, p.x2, p.channels, p.x2_channels, at.image, p.spatial, at.from + c * V);
    };
    // Of a tensor of all channels: column c of the image's first position.
    auto column = [&](auto *tensor, int c) { return tensor + at.image * p.spatial * p.channels + at.from + c * V; };
    int group_len = p.channels / p.groups;
    float *kept_d_y = cache + p.spatial * at.columns * V;
    Len domain = at.image * p.groups + at.from / group_len + at.group;
    float mean = at.active ? p.mean[domain] : 0.0f, rstd = at.active ? p.rstd[domain] : 0.0f;
    // xhat and dv of an element.
    auto terms = [&](float x, float d_y, float gain, float bias, float &xhat) {
        xhat = (x - mean) * rstd;
        return d_y * activation_slope(p.activation, fmaf(xhat, gain, bias));
    };

    double m[2] = {0.0, 0.0};
    for (int first = 0; first < at.columns; first += THREADS) {
        int c = first + at.column;
        bool there = c < at.columns;
        float gain[V], bias[V];
        Sum ps[V], qs[V];
        if (there && at.active) {
            affine<V>(p, at.image, at.from + c * V, gain, bias);
            Source<const float> x = source(c);
            const float *d_y = column(p.d_y, c);
            at.each(
                p.spatial, c,
                [&](Len s, int kept) {
                    Lanes<V> l = read<V>(x.at(s)), d = read<V>(d_y + s * p.channels);
                    if (p.cached) {
                        write<V>(cache + kept, l);
                        write<V>(kept_d_y + kept, d);
                    }
#pragma unroll
                    for (int k = 0; k < V; k++) {
                        float xhat, dv = terms(l[k], d[k], gain[k], bias[k], xhat);
                        ps[k].add(dv);
                        qs[k].part = fmaf(dv, xhat, qs[k].part);
                    }
                },
                [&] {
#pragma unroll
                    for (int k = 0; k < V; k++) {
                        ps[k].fold();
                        qs[k].fold();
                    }
                });
        }
        double totals[2 * V];
#pragma unroll
        for (int k = 0; k < V; k++) {
            totals[k] = ps[k].total;
            totals[V + k] = qs[k].total;
        }
        at.template over_rows<2 * V>(sums, totals);
        if (there && at.active && at.row == 0) {
            Len channel = at.image * p.channels + at.from + c * V;
#pragma unroll
            for (int k = 0; k < V; k++) {
                double of_p = sums[k][threadIdx.x], of_q = sums[V + k][threadIdx.x];
                p.p[channel + k] = (float)of_p;
                p.q[channel + k] = (float)of_q;
                m[0] += (double)gain[k] * of_p;
                m[1] += (double)gain[k] * of_q;
            }
        }
        __syncthreads();
    }
    if (!p.d_x && !p.d_x2) return;
    sums[0][threadIdx.x] = m[0];
    sums[1][threadIdx.x] = m[1];
    __syncthreads();
    at.over_group(sums, m);
    double elements = (double)(p.spatial * group_len);
    float m1 = (float)(m[0] / elements), m2 = (float)(m[1] / elements);

    for (int c = at.column; c < at.columns; c += THREADS) {
        bool second = at.from + c * V >= p.channels - p.x2_channels;
        if (!(second ? p.d_x2 : p.d_x)) continue;
        Source<const float> x = source(c);
        Source<float> d_x(p.d_x, p.d_x2, p.channels, p.x2_channels, at.image, p.spatial, at.from + c * V);
        const float *d_y = column(p.d_y, c), *joined = column(p.joined, c);
        float gain[V], bias[V];
        affine<V>(p, at.image, at.from + c * V, gain, bias);
        at.each(
            p.spatial, c,
            [&](Len s, int kept) {
                Lanes<V> l = read<V>(p.cached ? cache + kept : x.at(s));
                Lanes<V> d = read<V>(p.cached ? kept_d_y + kept : d_y + s * p.channels);
#pragma unroll
                for (int k = 0; k < V; k++) {
                    float xhat, dv = terms(l[k], d[k], gain[k], bias[k], xhat);
                    l[k] = rstd * fmaf(-xhat, m2, fmaf(dv, gain[k], -m1));
                }
                if (p.joined) {
                    Lanes<V> before = read<V>(joined + s * p.channels);
#pragma unroll
                    for (int k = 0; k < V; k++) l[k] = before[k] + l[k];
                }
                write_or_add<V>(d_x.at(s), l, second ? p.add2 : p.add);
            },
            [] {});
    }
}

ENTRY(norm_forward_group_f32, Norm, 256) { group_forward<4>(p); }

ENTRY(norm_forward_group_odd_f32, Norm, 256) { group_forward<1>(p); }

ENTRY(norm_backward_group_f32, NormBackward, 256) { group_backward<4>(p); }

ENTRY(norm_backward_group_odd_f32, NormBackward, 256, 4) { group_backward<1>(p); }

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

/// The position of a warp; false where there is none.
INLINE bool warp_row(Len spatial, Len &row, Len &image) {
    Len s = (Len)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    image = blockIdx.y;
    row = image * spatial + s;
    return s < spatial;
}

template <int V> INLINE void layer_forward(const Norm &p) {
    Len row, image;
    if (!warp_row(p.spatial, row, image)) return;
    const float *x = p.x + row * p.channels;
    double elements = (double)p.channels;
    Sum first, second;
    each_channel<V>(
        p.channels,
        [&](int c) {
            Lanes<V> l = read<V>(x + c);
#pragma unroll
            for (int k = 0; k < V; k++) first.add(l[k]);
        },
        [&] { first.fold(); });
    float centre = (float)(warp_sum(first.total) / elements);
    first = Sum();
    each_channel<V>(
        p.channels,
        [&](int c) {
            Lanes<V> l = read<V>(x + c);
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
            Lanes<V> l = read<V>(x + c);
#pragma unroll
            for (int k = 0; k < V; k++) {
                float xhat = ((l[k] - of.mean) - of.low) * of.rstd;
                l[k] = activation_value(p.activation, fmaf(xhat, gain[k], bias[k]));
            }
            write_or_add<V>(p.y + row * p.channels + c, l, p.add);
        },
        [] {});
}

template <int V> INLINE void layer_backward(const NormBackward &p) {
    Len row, image;
    if (!warp_row(p.spatial, row, image)) return;
    const float *x = p.x + row * p.channels, *d_y = p.d_y + row * p.channels;
    float mean = p.mean[row], rstd = p.rstd[row];
    Sum first, second;
    // xhat and dv of the lane's channels from c on.
    auto terms = [&](int c, Lanes<V> &xhat, Lanes<V> &dv, float (&gain)[V]) {
        float bias[V];
        affine<V>(p, image, c, gain, bias);
        xhat = read<V>(x + c);
        dv = read<V>(d_y + c);
#pragma unroll
        for (int k = 0; k < V; k++) {
            xhat[k] = (xhat[k] - mean) * rstd;
            dv[k] = dv[k] * activation_slope(p.activation, fmaf(xhat[k], gain[k], bias[k]));
        }
    };
    each_channel<V>(
        p.channels,
        [&](int c) {
            Lanes<V> xhat, dv;
            float gain[V];
            terms(c, xhat, dv, gain);
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
    double elements = (double)p.channels;
    float m1 = (float)(warp_sum(first.total) / elements);
    float m2 = (float)(warp_sum(second.total) / elements);
    each_channel<V>(
        p.channels,
        [&](int c) {
            Lanes<V> xhat, dv, l;
            float gain[V];
            terms(c, xhat, dv, gain);
#pragma unroll
            for (int k = 0; k < V; k++) {
                l[k] = rstd * fmaf(-xhat[k], m2, fmaf(dv[k], gain[k], -m1));
            }
            write_or_add<V>(p.d_x + row * p.channels + c, l, p.add);
        },
        [] {});
}

ENTRY(norm_forward_layer_f32, Norm, 256) { layer_forward<4>(p); }

ENTRY(norm_forward_layer_odd_f32, Norm, 256) { layer_forward<1>(p); }

ENTRY(norm_backward_layer_f32, NormBackward, 256) { layer_backward<4>(p); }

ENTRY(norm_backward_layer_odd_f32, NormBackward, 256) { layer_backward<1>(p); }

/// P and Q of a layer norm: 32 channels of an image a block, 8 rows of threads over
/// the positions.
ENTRY(norm_backward_layer_sums_f32, NormBackward, 256) {
    __shared__ double sums[2][THREADS];
    int t = threadIdx.x, c = blockIdx.x * 32 + t % 32;
    Len image = blockIdx.y;
    Sum ps, qs;
    if (c < p.channels) {
        float gain[1], bias[1];
        affine<1>(p, image, c, gain, bias);
        int left = SHORT;
        for (Len s = t / 32; s < p.spatial; s += THREADS / 32) {
            Len row = image * p.spatial + s, i = row * p.channels + c;
            float xhat = (p.x[i] - p.mean[row]) * p.rstd[row];
            float dv = p.d_y[i] * activation_slope(p.activation, fmaf(xhat, gain[0], bias[0]));
            ps.add(dv);
            qs.part = fmaf(dv, xhat, qs.part);
            if (--left == 0) {
                ps.fold();
                qs.fold();
                left = SHORT;
            }
        }
        ps.fold();
        qs.fold();
    }
    sums[0][t] = ps.total;
    sums[1][t] = qs.total;
    __syncthreads();
    if (t < 32 && c < p.channels) {
        for (int w = 1; w < THREADS / 32; w++) {
            ps.total += sums[0][w * 32 + t];
            qs.total += sums[1][w * 32 + t];
        }
        p.p[image * p.channels + c] = (float)ps.total;
        p.q[image * p.channels + c] = (float)qs.total;
    }
}

/// Gradients of the vectors from P and Q, over the images in order; a thread a
/// channel.
ENTRY(norm_backward_vectors_f32, NormVectors, 256) {
    Len c = (Len)blockIdx.x * THREADS + threadIdx.x;
    if (c >= p.channels) return;
    float gamma = p.gamma ? p.gamma[c] : 1.0f, beta = p.beta ? p.beta[c] : 0.0f;
    const float *scale_shift = (const float *)p.scale_shift;
    float *d_scale_shift = (float *)p.d_scale_shift;
    double d_gamma = 0.0, d_beta = 0.0;
    for (Len image = 0; image < p.n; image++) {
        float of_p = p.p[image * p.channels + c], of_q = p.q[image * p.channels + c];
        Len row = image * 2 * p.channels;
        double scale = (double)(scale_shift ? 1.0f + scale_shift[row + c] : 1.0f);
        d_gamma += scale * (double)of_q;
        d_beta += scale * (double)of_p;
        if (d_scale_shift) {
            bool add = p.add_scale_shift;
            put(d_scale_shift + row + c, fmaf(gamma, of_q, beta * of_p), add);
            put(d_scale_shift + row + p.channels + c, of_p, add);
        }
    }
    if (p.d_gamma) put(p.d_gamma + c, (float)d_gamma, p.add_gamma);
    if (p.d_beta) put(p.d_beta + c, (float)d_beta, p.add_beta);
}
