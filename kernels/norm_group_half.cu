// Group normalisation in bf16: norm.cu's equations, with statistics, gamma, beta and
// gradients of vectors in f32.
//
// A block has a slice of whole groups of one image, at least a sector wide. Threads stand
// in a grid of columns (V channels: 16 bytes, or one element) x rows (positions); as many
// positions of the slice as shared memory holds are read once and kept, the rest is read
// again. x may lie in two tensors side by side in channels, so that a concatenation need
// not be formed; its gradient is then two tensors too, to which what other readers of the
// concatenation left in one (`joined`) is added.
//
// Sums are of every channel and f32: over a thread's positions, over rows in a fixed tree,
// over the channels of a group by a warp. Forward they are of x - x_0, x_0 being the
// channel's first position: whatever x_0 is, (x_0 - mean)^2 is at most `spatial` variances,
// so the variance loses less than bf16's rounding does, and one sweep gives mean and
// variance. Nothing depends on the batch.
#include "norm.cuh"
#include "norm_half.cuh"

constexpr int THREADS = 256;

/// One slice of an image, and where a thread stands in it.
template <int V> struct Slice {
    Len image;
    int from, columns; // first channel; V channels each
    int along, rows;   // threads beside one another, and rows of them
    int column, row;   // of this thread; a row past every position: it stands nowhere
    /// Lines of sums that are left to add in shared memory: warps, where lanes can be
    /// added first, else rows.
    bool by_warps;
    int lines;

    INLINE Slice(int channels, int slice) {
        image = blockIdx.y;
        from = blockIdx.x * slice;
        columns = min(slice, channels - from) / V;
        along = min(columns, THREADS);
        rows = THREADS / along;
        row = threadIdx.x / along;
        column = threadIdx.x - row * along;
        if (row >= rows) row = 1 << 30;
        by_warps = along < 32 && (along & (along - 1)) == 0;
        lines = by_warps ? THREADS / 32 : rows;
    }

    /// Floats of shared memory for two sums of each of V channels: whole 16 bytes.
    INLINE int partial_len() const { return (lines * (2 * V + 1) * along + 3) / 4 * 4; }

    /// Index of a channel of the slice in arrays of its channels.
    INLINE int at(int c) const { return c % V * columns + c / V; }

    /// The same where a column's channels are read at once: in quads.
    INLINE int quad_at(int c) const { return V == 1 ? c : (c / 4 % 2 * columns + c / V) * 4 + c % 4; }

    /// A column's channels of such an array, read each time rather than held in registers.
    INLINE Pack<V> quads(const float *array, int column) const {
        Pack<V> x;
        if constexpr (V == 8) {
#pragma unroll
            for (int half = 0; half < 2; half++)
                asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                             : "=f"(x[4 * half]), "=f"(x[4 * half + 1]), "=f"(x[4 * half + 2]),
                               "=f"(x[4 * half + 3])
                             : "r"((unsigned)__cvta_generic_to_shared(array + (half * columns + column) * 4))
                             : "memory");
        } else {
            x[0] = array[column];
        }
        return x;
    }

    /// Sums of N values a thread over the rows, in `partial`; `put(which, column, sum)` gets
    /// each once. Threads that stand nowhere bring zeros.
    template <int N, class Put> INLINE void over_rows(float (&x)[N], float *partial, Put put) const {
        int line = by_warps ? (int)threadIdx.x / 32 : row;
        if (by_warps) {
#pragma unroll
            for (int i = 0; i < N; i++)
                for (int d = 16; d >= along; d >>= 1) x[i] += __shfl_xor_sync(0xffffffffu, x[i], d);
        }
        // One column more than there are sums: the rows of a warp meet different banks.
        int pitch = (N + 1) * along;
        if (by_warps ? (int)threadIdx.x % 32 < along : row < rows) {
#pragma unroll
            for (int i = 0; i < N; i++) partial[line * pitch + i * along + column] = x[i];
        }
        __syncthreads();
        for (int j = threadIdx.x; j < N * along; j += THREADS) {
            float sum = partial[j];
            for (int l = 1; l < lines; l++) sum += partial[l * pitch + j];
            put(j / along, j % along, sum);
        }
        __syncthreads();
    }
};

/// Calls f(position, what is stored there of each tensor) for a thread's positions: from
/// shared memory where they are kept.
template <int V, bool FILL, int TENSORS, class F>
INLINE void each(const Slice<V> &at, int column, int spatial, int kept, Raw<V> *cache,
                 const Source<const Bf16> (&sources)[TENSORS], F f) {
    int pitch = kept * at.columns;
#pragma unroll 1
    for (int s = at.row; s < spatial; s += at.rows) {
        Raw<V> raw[TENSORS];
        Raw<V> *slot = cache + s * at.columns + column;
#pragma unroll
        for (int i = 0; i < TENSORS; i++) {
            if (FILL || s >= kept) raw[i] = *(const Raw<V> *)sources[i].at(s);
            else raw[i] = slot[i * pitch];
            if (FILL && s < kept) slot[i * pitch] = raw[i];
        }
        f(s, raw);
    }
}

template <int V, Word ACTIVATION> INLINE void group_forward(const NormHalf &p) {
    extern __shared__ __align__(16) unsigned char shared[];
    Slice<V> at(p.channels, p.slice);
    int wide = at.columns * V, group_len = p.channels / p.groups, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float *partial = (float *)shared, *origin = partial + at.partial_len();
    float *first = origin + wide, *second = first + wide;
    Raw<V> *cache = (Raw<V> *)(second + wide);
    auto source = [&](int column) {
        return Source<const Bf16>((const Bf16 *)p.x, (const Bf16 *)p.x2, p.channels, p.x2_channels, at.image,
                                  p.spatial, at.from + column * V);
    };

    for (int column = threadIdx.x; column < at.columns; column += THREADS) {
        Pack<V> x = ((const Raw<V> *)source(column).at(0))->widened();
#pragma unroll
        for (int k = 0; k < V; k++) origin[k * at.columns + column] = x[k];
    }
    __syncthreads();
    for (int start = 0; start < at.columns; start += THREADS) {
        int column = start + at.column;
        float sums[2 * V] = {};
        if (column < at.columns) {
            float x0[V];
#pragma unroll
            for (int k = 0; k < V; k++) x0[k] = origin[k * at.columns + column];
            const Source<const Bf16> sources[1] = {source(column)};
            each<V, true>(at, column, p.spatial, p.kept, cache, sources, [&](int, const Raw<V>(&raw)[1]) {
                Pack<V> x = raw[0].widened();
#pragma unroll
                for (int k = 0; k < V; k++) {
                    float d = x[k] - x0[k];
                    sums[k] += d;
                    sums[V + k] = fmaf(d, d, sums[V + k]);
                }
            });
        }
        at.over_rows(sums, partial, [&](int i, int c, float sum) {
            if (start + c < at.columns) (i < V ? first : second)[i % V * at.columns + start + c] = sum;
        });
    }

    float positions = (float)p.spatial;
    for (int g = warp; g < wide / group_len; g += THREADS / 32) {
        float mean = 0.0f, squares = 0.0f;
        for (int j = lane; j < group_len; j += 32) {
            int c = at.at(g * group_len + j);
            mean += origin[c] + first[c] / positions;
        }
        mean = warp_sum(mean) / (float)group_len;
        for (int j = lane; j < group_len; j += 32) {
            int c = at.at(g * group_len + j);
            float low = first[c] / positions, off = origin[c] + low - mean;
            squares += fmaf(-first[c], low, second[c]) + positions * off * off;
        }
        float variance = warp_sum(squares) / (positions * (float)group_len);
        float rstd = 1.0f / sqrtf(fmaxf(variance, 0.0f) + p.eps);
        if (lane == 0) {
            Len domain = at.image * p.groups + at.from / group_len + g;
            p.mean[domain] = mean;
            p.rstd[domain] = rstd;
        }
        // From here on y = f(x first + second).
        for (int j = lane; j < group_len; j += 32) {
            int c = at.at(g * group_len + j);
            Affine affine(p, at.image, at.from + g * group_len + j);
            first[c] = rstd * affine.gain;
            second[c] = fmaf(-mean, first[c], affine.bias);
        }
    }
    __syncthreads();

    for (int column = at.column; column < at.columns; column += THREADS) {
        float a[V], b[V];
#pragma unroll
        for (int k = 0; k < V; k++) {
            a[k] = first[k * at.columns + column];
            b[k] = second[k * at.columns + column];
        }
        Bf16 *y = (Bf16 *)p.y + at.image * p.spatial * p.channels + at.from + column * V;
        const Source<const Bf16> sources[1] = {source(column)};
        each<V, false>(at, column, p.spatial, p.kept, cache, sources, [&](int s, const Raw<V>(&raw)[1]) {
            Pack<V> x = raw[0].widened();
#pragma unroll
            for (int k = 0; k < V; k++) x[k] = activate<ACTIVATION>(p.activation, fmaf(x[k], a[k], b[k]));
            write<V>(y + (Len)s * p.channels, x, p.add);
        });
    }
}

template <int V, Word ACTIVATION> INLINE void group_backward(const NormHalfBackward &p) {
    extern __shared__ __align__(16) unsigned char shared[];
    Slice<V> at(p.channels, p.slice);
    int wide = at.columns * V, group_len = p.channels / p.groups, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // Of every channel: v = x a + b; mean, then c and d of d_x = dv a + x c + d; P and Q.
    float *partial = (float *)shared, *a = partial + at.partial_len(), *b = a + wide, *c = b + wide;
    float *d = c + wide, *of_p = d + wide, *of_q = of_p + wide;
    Raw<V> *cache = (Raw<V> *)(of_q + wide);
    Len domain = at.image * p.groups + at.from / group_len;
    for (int g = warp; g < wide / group_len; g += THREADS / 32) {
        float mean = of_lane_0(p.mean + domain + g), rstd = of_lane_0(p.rstd + domain + g);
        for (int j = g * group_len + lane; j < (g + 1) * group_len; j += 32) {
            Affine affine(p, at.image, at.from + j);
            float gain = rstd * affine.gain;
            a[at.quad_at(j)] = gain;
            b[at.quad_at(j)] = fmaf(-mean, gain, affine.bias);
            c[at.quad_at(j)] = mean;
        }
    }
    __syncthreads();
    auto sources = [&](int column, Source<const Bf16> (&to)[2]) {
        int channel = at.from + column * V;
        to[0] = Source<const Bf16>((const Bf16 *)p.x, (const Bf16 *)p.x2, p.channels, p.x2_channels, at.image,
                                   p.spatial, channel);
        to[1] = Source<const Bf16>((const Bf16 *)p.d_y, nullptr, p.channels, 0, at.image, p.spatial, channel);
    };
    const Source<const Bf16> none((const Bf16 *)p.x, nullptr, p.channels, 0, 0, 0, 0);

    for (int start = 0; start < at.columns; start += THREADS) {
        int column = start + at.column;
        float sums[2 * V] = {};
        if (column < at.columns) {
            Pack<V> ka = at.quads(a, column);
            Source<const Bf16> from[2] = {none, none};
            sources(column, from);
            each<V, true>(at, column, p.spatial, p.kept, cache, from, [&](int, const Raw<V>(&raw)[2]) {
                Pack<V> x = raw[0].widened(), d_y = raw[1].widened(), mean = at.quads(c, column);
                Pack<V> kb = at.quads(b, column);
                if (ACTIVATION == ANY) ka = at.quads(a, column);
#pragma unroll
                for (int k = 0; k < V; k++) {
                    float dv = d_y[k] * slope<ACTIVATION>(p.activation, fmaf(x[k], ka[k], kb[k]));
                    sums[k] += dv;
                    sums[V + k] = fmaf(dv, x[k] - mean[k], sums[V + k]);
                }
            });
        }
        at.over_rows(sums, partial, [&](int i, int column, float sum) {
            if (start + column < at.columns) (i < V ? of_p : of_q)[i % V * at.columns + start + column] = sum;
        });
    }

    float elements = (float)p.spatial * (float)group_len;
    for (int g = warp; g < wide / group_len; g += THREADS / 32) {
        float mean = of_lane_0(p.mean + domain + g), rstd = of_lane_0(p.rstd + domain + g);
        float m1 = 0.0f, m2 = 0.0f;
        for (int j = lane; j < group_len; j += 32) {
            int i = at.at(g * group_len + j);
            Len channel = at.image * p.channels + at.from + g * group_len + j;
            float q = of_q[i] * rstd, gain = a[at.quad_at(g * group_len + j)]; // times rstd
            p.p[channel] = of_p[i];
            p.q[channel] = q;
            m1 = fmaf(gain, of_p[i], m1);
            m2 = fmaf(gain, q, m2);
        }
        m1 = warp_sum(m1) / elements;
        m2 = warp_sum(m2) / elements * rstd;
        for (int j = lane; j < group_len; j += 32) {
            int i = at.quad_at(g * group_len + j);
            c[i] = -m2;
            d[i] = fmaf(mean, m2, -m1);
        }
    }
    if (!p.d_x && !p.d_x2) return;
    __syncthreads();

    for (int column = at.column; column < at.columns; column += THREADS) {
        Pack<V> ka = at.quads(a, column);
        Source<const Bf16> from[2] = {none, none};
        sources(column, from);
        int channel = at.from + column * V;
        bool second = channel >= p.channels - p.x2_channels, add = second ? p.add2 : p.add;
        if (!(second ? p.d_x2 : p.d_x)) continue;
        Source<Bf16> to((Bf16 *)p.d_x, (Bf16 *)p.d_x2, p.channels, p.x2_channels, at.image, p.spatial, channel);
        const Bf16 *joined = (const Bf16 *)p.joined + at.image * p.spatial * p.channels + channel;
        each<V, false>(at, column, p.spatial, p.kept, cache, from, [&](int s, const Raw<V>(&raw)[2]) {
            Pack<V> x = raw[0].widened(), d_y = raw[1].widened(), kc = at.quads(c, column), kd = at.quads(d, column);
            Pack<V> kb = at.quads(b, column);
            if (ACTIVATION == ANY) ka = at.quads(a, column);
#pragma unroll
            for (int k = 0; k < V; k++) {
                float dv = d_y[k] * slope<ACTIVATION>(p.activation, fmaf(x[k], ka[k], kb[k]));
                x[k] = fmaf(dv, ka[k], fmaf(x[k], kc[k], kd[k]));
            }
            if (p.joined) {
                Pack<V> before = ((const Raw<V> *)(joined + (Len)s * p.channels))->widened();
#pragma unroll
                for (int k = 0; k < V; k++) x[k] = before[k] + x[k];
            }
            write<V>(to.at(s), x, add);
        });
    }
}

ENTRY(norm_forward_group_bf16, NormHalf, 256, 4) { group_forward<8, ACTIVATION_NONE>(p); }
ENTRY(norm_forward_group_silu_bf16, NormHalf, 256, 4) { group_forward<8, ACTIVATION_SILU>(p); }
ENTRY(norm_forward_group_any_bf16, NormHalf, 256, 4) { group_forward<8, ANY>(p); }
ENTRY(norm_forward_group_odd_bf16, NormHalf, 256, 4) { group_forward<1, ANY>(p); }
ENTRY(norm_backward_group_bf16, NormHalfBackward, 256, 4) { group_backward<8, ACTIVATION_NONE>(p); }
ENTRY(norm_backward_group_silu_bf16, NormHalfBackward, 256, 4) { group_backward<8, ACTIVATION_SILU>(p); }
ENTRY(norm_backward_group_any_bf16, NormHalfBackward, 256, 2) { group_backward<8, ANY>(p); }
ENTRY(norm_backward_group_odd_bf16, NormHalfBackward, 256, 4) { group_backward<1, ANY>(p); }
