// Group normalisation in f32, affine map, scale-shift and activation fused.
//
//   xhat = (x - mean) rstd, v = xhat gain + bias, y = f(v)
//   gain = gamma (1 + scale), bias = beta (1 + scale) + shift, of image and channel
//
// Backward, with dv = d_y f'(v): P = sum dv and Q = sum dv xhat over the positions
// of an image and channel give every gradient of a vector and, weighted by the gain
// over a domain, m1 and m2 of
//   d_x = rstd (dv gain - m1 - xhat m2).
//
// x: [n, spatial, channels] f32, or two tensors side by side in channels, so that a
// concatenation need not be formed; its gradient is then two tensors too, to which what
// other readers of the concatenation left in one (`joined`) is added.
// One block a slice of whole groups of one image (at least a sector of channels wide). The
// block's threads stand in a grid of columns (V channels) x rows (positions); where the
// slice fits, it is read once and kept in shared memory.
// Sums: f32 over 16 terms, f64 over those, then a fixed tree; mean corrected by what
// the second sweep finds. Nothing depends on the batch. Of P and Q that gamma and beta
// need, the block that is the last of a slice adds up the images: a thread row those that
// are its number apart, then the tree of rows.
#include "norm_exact.cuh"

/// Where a thread of a block stands.
template <int V> struct Place {
    Len image;
    int from;         // first channel of the block's slice
    int columns;      // V channels each, of the slice
    int at_once;      // columns the threads cover at once
    int column, row;  // of this thread
    int rows;         // rows of threads
    bool active;

    INLINE Place(int channels, int slice) {
        int t = threadIdx.x;
        image = blockIdx.y;
        from = blockIdx.x * slice;
        columns = min(slice, channels - from) / V;
        at_once = min(columns, THREADS);
        rows = THREADS / at_once;
        row = t / at_once;
        column = t - row * at_once;
        active = row < rows;
    }

    /// Index of the thread's group among all of all images. A slice wider than the threads
    /// is one group.
    INLINE Len domain(int groups, int group_len) const {
        return image * groups + (from + column * V) / group_len;
    }

    /// Calls f(position, offset in the slice's copy) for the thread's positions of column
    /// c, and `fold` after every SHORT of them.
    template <class F, class G> INLINE void each(int spatial, int c, F f, G fold) const {
        if (!active) return;
        int left = SHORT;
#pragma unroll 1
        for (int s = row; s < spatial; s += rows) {
            f(s, (s * columns + c) * V);
            if (--left == 0) {
                fold();
                left = SHORT;
            }
        }
        fold();
    }

    /// Adds up what each thread has in its column of `sums`, over the rows of threads: left
    /// to those of row 0.
    template <int N> INLINE void over_rows(double (*sums)[THREADS]) const {
        int t = threadIdx.x;
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
    template <int N> INLINE void over_group(double (*sums)[THREADS], double (&x)[N], int group_len) const {
        int t = threadIdx.x, group_columns = min(group_len / V, at_once);
        int in_group = column % group_columns;
        for (int half = 1 << (31 - __clz(group_columns)); half > 0; half >>= 1) {
            if (t < at_once && in_group < half && in_group + half < group_columns) {
#pragma unroll
                for (int i = 0; i < N; i++) sums[i][t] += sums[i][t + half];
            }
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = sums[i][column - in_group];
        __syncthreads();
    }

    /// x summed over the threads of each group; every thread gets its group's.
    template <int N> INLINE void sum(double (*sums)[THREADS], double (&x)[N], int group_len) const {
#pragma unroll
        for (int i = 0; i < N; i++) sums[i][threadIdx.x] = x[i];
        over_rows<N>(sums);
        over_group<N>(sums, x, group_len);
    }
};

template <int V> INLINE void group_forward(const Norm &p) {
    extern __shared__ __align__(16) float cache[];
    __shared__ double sums[2][THREADS];
    Place<V> at(p.channels, p.slice);
    int group_len = p.channels / p.groups;
    double elements = (double)(p.spatial * group_len);
    auto source = [&](int c) {
        return Source<const float>(p.x, p.x2, p.channels, p.x2_channels, at.image,
                                   p.spatial, at.from + c * V);
    };

    Sum first, second;
    for (int c = at.column; c < at.columns; c += THREADS) {
        Source<const float> x = source(c);
        at.each(
            (int)p.spatial, c,
            [&](int s, int kept) {
                Pack<V> l = read<V>(x.at(s));
                if (p.kept) keep<V>(cache + kept, l);
#pragma unroll
                for (int k = 0; k < V; k++) first.add(l[k]);
            },
            [&] { first.fold(); });
    }
    double totals[2] = {first.total, 0.0};
    at.sum(sums, totals, group_len);
    float centre = (float)(totals[0] / elements);

    // A thread finds in the cache what it wrote itself.
    auto again = [&](const Source<const float> &x, int s, int kept) {
        return read<V>(p.kept ? cache + kept : x.at(s));
    };
    first = Sum();
    for (int c = at.column; c < at.columns; c += THREADS) {
        Source<const float> x = source(c);
        at.each(
            (int)p.spatial, c,
            [&](int s, int kept) {
                Pack<V> l = again(x, s, kept);
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
    at.sum(sums, totals, group_len);
    Statistics of(centre, totals[0] / elements, totals[1] / elements, p.eps);
    if (at.active && at.row == 0 && at.column * V % group_len == 0) {
        Len domain = at.domain(p.groups, group_len);
        p.mean[domain] = of.mean;
        p.rstd[domain] = of.rstd;
    }

    for (int c = at.column; c < at.columns; c += THREADS) {
        Source<const float> x = source(c);
        Source<float> y(p.y, nullptr, p.channels, 0, at.image, p.spatial, at.from + c * V);
        float gain[V], bias[V];
        affine<V>(p, at.image, at.from + c * V, gain, bias);
#pragma unroll
        for (int k = 0; k < V; k++) {
            gain[k] = gain[k] * of.rstd;
            bias[k] = bias[k] - of.low * gain[k];
        }
        at.each(
            (int)p.spatial, c,
            [&](int s, int kept) {
                Pack<V> l = again(x, s, kept);
#pragma unroll
                for (int k = 0; k < V; k++) {
                    l[k] = activation_value(p.activation, fmaf(l[k] - of.mean, gain[k], bias[k]));
                }
                write<V>(y.at(s), l, p.add);
            },
            [] {});
    }
}

template <int V> INLINE void group_backward(const NormBackward &p) {
    // Sums of each column weighted by its gain, for its group, and behind them what is kept.
    extern __shared__ __align__(16) double of_group[][THREADS];
    float *cache = (float *)of_group[2];
    // Sums of each thread: P of its V channels, then Q.
    __shared__ double sums[2 * V][THREADS];
    Place<V> at(p.channels, p.slice);
    int t = threadIdx.x, group_len = p.channels / p.groups;
    float *kept_d_y = cache + p.spatial * at.columns * V;
    Len domain = at.domain(p.groups, group_len);
    float mean = at.active ? p.mean[domain] : 0.0f, rstd = at.active ? p.rstd[domain] : 0.0f;
    bool of_weights = p.d_gamma || p.d_beta;
    // xhat and dv of an element.
    auto terms = [&](float x, float d_y, float gain, float bias, float &xhat) {
        xhat = (x - mean) * rstd;
        return d_y * activation_slope(p.activation, fmaf(xhat, gain, bias));
    };
    auto source = [&](int c) {
        return Source<const float>(p.x, p.x2, p.channels, p.x2_channels, at.image,
                                   p.spatial, at.from + c * V);
    };
    auto of_y = [&](int c) {
        return Source<const float>(p.d_y, nullptr, p.channels, 0, at.image, p.spatial, at.from + c * V);
    };

    of_group[0][t] = of_group[1][t] = 0.0;
    for (int start = 0; start < at.columns; start += THREADS) {
        int c = start + at.column;
        bool there = at.active && c < at.columns;
#pragma unroll
        for (int i = 0; i < 2 * V; i++) sums[i][t] = 0.0;
        if (there) {
            float gain[V], bias[V], ps[V] = {}, qs[V] = {};
            affine<V>(p, at.image, at.from + c * V, gain, bias);
            Source<const float> x = source(c);
            Source<const float> d_y = of_y(c);
            volatile double *kept_sums = &sums[0][t];
            at.each(
                (int)p.spatial, c,
                [&](int s, int kept) {
                    Pack<V> l = read<V>(x.at(s)), d = read<V>(d_y.at(s));
                    if (p.kept) {
                        keep<V>(cache + kept, l);
                        keep<V>(kept_d_y + kept, d);
                    }
#pragma unroll
                    for (int k = 0; k < V; k++) {
                        float xhat, dv = terms(l[k], d[k], gain[k], bias[k], xhat);
                        ps[k] += dv;
                        qs[k] = fmaf(dv, xhat, qs[k]);
                    }
                },
                [&] {
#pragma unroll
                    for (int k = 0; k < V; k++) {
                        kept_sums[k * THREADS] = kept_sums[k * THREADS] + (double)ps[k];
                        kept_sums[(V + k) * THREADS] = kept_sums[(V + k) * THREADS] + (double)qs[k];
                        ps[k] = qs[k] = 0.0f;
                    }
                });
        }
        at.template over_rows<2 * V>(sums);
        if (there && at.row == 0) {
            // One by one: the registers of the loops are few.
#pragma unroll 1
            for (int k = 0; k < V; k++) {
                int channel = at.from + c * V + k;
                float gain[1], bias[1];
                affine<1>(p, at.image, channel, gain, bias);
                double of_p[1] = {sums[k][t]}, of_q[1] = {sums[V + k][t]};
                of_group[0][t] += (double)gain[0] * of_p[0];
                of_group[1][t] += (double)gain[0] * of_q[0];
                image_vectors<float, 1>(p, at.image, channel, of_p, of_q);
                if (of_weights) leave_sums<1>(p, p.sums + at.image * 2 * p.channels, channel, of_p, of_q);
            }
        }
        __syncthreads();
    }

    if (p.d_x || p.d_x2) {
        double m[2];
        at.over_group(of_group, m, group_len);
        double elements = (double)(p.spatial * group_len);
        float m1 = (float)(m[0] / elements), m2 = (float)(m[1] / elements);
        for (int c = at.column; c < at.columns; c += THREADS) {
            int channel = at.from + c * V;
            bool second = channel >= p.channels - p.x2_channels, add = second ? p.add2 : p.add;
            if (!(second ? p.d_x2 : p.d_x)) continue;
            Source<float> d_x(p.d_x, p.d_x2, p.channels, p.x2_channels, at.image, p.spatial, channel);
            Source<const float> x = source(c);
            Source<const float> d_y = of_y(c);
            float gain[V], bias[V];
            affine<V>(p, at.image, channel, gain, bias);
            at.each(
                (int)p.spatial, c,
                [&](int s, int kept) {
                    Pack<V> l = read<V>(p.kept ? cache + kept : x.at(s));
                    Pack<V> d = read<V>(p.kept ? kept_d_y + kept : d_y.at(s));
#pragma unroll
                    for (int k = 0; k < V; k++) {
                        float xhat, dv = terms(l[k], d[k], gain[k], bias[k], xhat);
                        l[k] = rstd * fmaf(-xhat, m2, fmaf(dv, gain[k], -m1));
                    }
                    if (p.joined) {
                        Pack<V> before = read<V>(same(d_y.at(s), p.d_y, p.joined));
#pragma unroll
                        for (int k = 0; k < V; k++) l[k] = before[k] + l[k];
                    }
                    write<V>(d_x.at(s), l, add);
                },
                [] {});
        }
    }

    if (!of_weights || !is_last_block(p.counters + blockIdx.x, gridDim.y)) return;
    for (int start = 0; start < at.columns; start += THREADS) {
        int channel = at.from + (start + at.column) * V;
        bool there = at.active && start + at.column < at.columns;
#pragma unroll
        for (int i = 0; i < 2 * V; i++) sums[i][t] = 0.0;
        if (there) {
            double of_p[V] = {}, of_q[V] = {};
            for (Len image = at.row; image < gridDim.y; image += at.rows) {
                add_sums<V>(p, p.sums + image * 2 * p.channels, channel, of_p, of_q);
            }
#pragma unroll
            for (int k = 0; k < V; k++) {
                sums[k][t] = of_p[k];
                sums[V + k][t] = of_q[k];
            }
        }
        at.template over_rows<2 * V>(sums);
        if (there && at.row == 0) {
            double of_p[V], of_q[V];
#pragma unroll
            for (int k = 0; k < V; k++) {
                of_p[k] = sums[k][t];
                of_q[k] = sums[V + k][t];
            }
            put_vectors<V>(p, channel, of_p, of_q);
        }
        __syncthreads();
    }
}

ENTRY(norm_forward_group_f32, Norm, 256) { group_forward<4>(p); }
ENTRY(norm_forward_group_odd_f32, Norm, 256) { group_forward<1>(p); }
ENTRY(norm_backward_group_f32, NormBackward, 256, 4) { group_backward<4>(p); }
ENTRY(norm_backward_group_odd_f32, NormBackward, 256, 4) { group_backward<1>(p); }
