// Group normalisation in bf16: norm_group.cu's equations, with statistics, gamma, beta and
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
// variance. Nothing of an image depends on the batch.
//
// `sums` of the backward pass: [n, 2, channels], P and Q as gamma and beta get them. The
// block of a slice that is last adds up the images: a thread row those that are its number
// apart, then as over positions.
#include "norm_half.cuh"

constexpr int THREADS = 256;

/// The thread's number, read anew: what follows from it need not stay in registers.
INLINE int thread() {
    int t;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
}

/// Exchanges two registers.
INLINE void swap(float &a, float &b) {
    float c = a;
    a = b;
    b = c;
}

/// One slice of an image, and where a thread stands in it.
template <int V> struct Slice {
    /// Channels of a column that are dealt with at once.
    static constexpr int QUAD = V == 8 ? 4 : 1;

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
        int t = thread();
        row = t / along;
        column = t - row * along;
        if (row >= rows) row = 1 << 30;
        by_warps = along < 32 && (along & (along - 1)) == 0;
        lines = by_warps ? THREADS / 32 : rows;
    }

    /// Floats from line to line of sums: lanes that follow one another lie in different
    /// banks, the last of a row and the first of the next one too.
    INLINE int pitch() const {
        int first = QUAD * along;
        return first + (2 * V * along - first + 31) / 32 * 32;
    }

    /// Floats of shared memory for two sums of each of V channels: whole 16 bytes.
    INLINE int partial_len() const { return (lines * pitch() + 3) / 4 * 4; }

    /// Arrays of a float a channel of the slice: the first quads of all columns, then the
    /// second. The distance, an odd multiple of 4 quads, puts 32 channels that follow one
    /// another into different banks.
    INLINE int distance() const { return (columns + 3) / 8 * 8 + 4; }

    /// Floats of such an array.
    INLINE int array_len() const { return V == 8 ? 8 * distance() : (columns + 3) / 4 * 4; }

    /// Index of a channel of the slice in it.
    INLINE int at(int c) const { return V == 8 ? (c / 4 % 2 * distance() + c / 8) * 4 + c % 4 : c; }

    /// A quad of a column, read each time rather than held in registers.
    INLINE Pack<QUAD> quad(const float *array, int column, int half) const {
        if constexpr (V == 8) return shared_quad(array + (half * distance() + column) * 4);
        else return {{array[column]}};
    }

    /// Sums over the rows of P and Q of a thread's V channels, the columns being those from
    /// `start` on: `put(which, channel of the slice, sum)` gets each once. Threads that
    /// stand nowhere bring zeros.
    template <class Put> INLINE void over_rows(float (&x)[2 * V], float *partial, int start, Put put) const {
        int t = thread(), line = by_warps ? t / 32 : row;
        if (by_warps) {
#pragma unroll
            for (int i = 0; i < 2 * V; i++)
                for (int d = 16; d >= along; d >>= 1) x[i] += __shfl_xor_sync(0xffffffffu, x[i], d);
        }
        if (by_warps ? t % 32 < along : row < rows) {
            float *to = partial + line * pitch() + column * QUAD;
#pragma unroll
            for (int i = 0; i < 2 * V; i += QUAD) {
                if constexpr (V == 8) write_shared_quad(to + i * along, x[i], x[i + 1], x[i + 2], x[i + 3]);
                else to[i * along] = x[i];
            }
        }
        __syncthreads();
        // Threads stand as `at` has channels, so that where they put sums banks differ too.
        int apart = V == 8 ? 4 * distance() : along;
        for (int j = t; j < 2 * V / QUAD * apart; j += THREADS) {
            int quads = j / apart, i = j - quads * apart, c = start + i / QUAD;
            if (i >= QUAD * along || c >= columns) continue;
            const float *from = partial + quads * QUAD * along + i;
            float sum = from[0];
            for (int l = 1; l < lines; l++) sum += from[l * pitch()];
            put(quads * QUAD / V, c * V + quads * QUAD % V + i % QUAD, sum);
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

template <int V, Word ACTIVATION> INLINE void group_forward(const Norm &p) {
    extern __shared__ __align__(16) unsigned char shared[];
    Slice<V> at(p.channels, p.slice);
    constexpr int QUAD = Slice<V>::QUAD;
    int wide = at.columns * V, group_len = p.channels / p.groups;
    int spatial = (int)p.spatial;
    // Of every channel: x_0; the sums of x - x_0 and of its square, then y = f(x first + second).
    float *partial = (float *)shared, *origin = partial + at.partial_len();
    float *first = origin + at.array_len(), *second = first + at.array_len();
    Raw<V> *cache = (Raw<V> *)(second + at.array_len());
    auto source = [&](int column) {
        return Source<const Bf16>(p.x, p.x2, p.channels, p.x2_channels, at.image, spatial, at.from + column * V);
    };

    for (int column = threadIdx.x; column < at.columns; column += THREADS) {
        Raw<V> raw = *(const Raw<V> *)source(column).at(0);
#pragma unroll
        for (int h = 0; h < V / QUAD; h++) {
            Pack<QUAD> x = raw.quad(h);
            float *to = origin + at.at(column * V + h * QUAD);
            if constexpr (V == 8) write_shared_quad(to, x[0], x[1], x[2], x[3]);
            else *to = x[0];
        }
    }
    __syncthreads();
    for (int start = 0; start < at.columns; start += THREADS) {
        int column = start + at.column;
        float sums[2 * V] = {};
        if (column < at.columns) {
            Pack<QUAD> x0[V / QUAD];
#pragma unroll
            for (int h = 0; h < V / QUAD; h++) x0[h] = at.quad(origin, column, h);
            const Source<const Bf16> sources[1] = {source(column)};
            each<V, true>(at, column, spatial, p.kept, cache, sources, [&](int, const Raw<V>(&raw)[1]) {
                Pack<V> x = raw[0].widened();
#pragma unroll
                for (int k = 0; k < V; k++) {
                    float d = x[k] - x0[k / QUAD][k % QUAD];
                    sums[k] += d;
                    sums[V + k] = fmaf(d, d, sums[V + k]);
                }
            });
        }
        at.over_rows(sums, partial, start,
                     [&](int which, int c, float sum) { (which ? second : first)[at.at(c)] = sum; });
    }

    float positions = (float)spatial;
    for (int t = thread(), g = t / 32, lane = t % 32; g < wide / group_len; g += THREADS / 32) {
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
        for (int j = lane; j < group_len; j += 32) {
            int c = at.at(g * group_len + j);
            Affine affine(p, at.image, at.from + g * group_len + j);
            first[c] = rstd * affine.gain;
            second[c] = fmaf(-mean, first[c], affine.bias);
        }
    }
    __syncthreads();

    for (int column = at.column; column < at.columns; column += THREADS) {
        Pack<QUAD> a[V / QUAD], b[V / QUAD];
#pragma unroll
        for (int h = 0; h < V / QUAD; h++) {
            a[h] = at.quad(first, column, h);
            b[h] = at.quad(second, column, h);
        }
        Source<Bf16> y(p.y, nullptr, p.channels, 0, at.image, spatial, at.from + column * V);
        const Source<const Bf16> sources[1] = {source(column)};
        each<V, false>(at, column, spatial, p.kept, cache, sources, [&](int s, const Raw<V>(&raw)[1]) {
            Pack<V> x = raw[0].widened();
#pragma unroll
            for (int k = 0; k < V; k++) {
                float v = fmaf(x[k], a[k / QUAD][k % QUAD], b[k / QUAD][k % QUAD]);
                x[k] = activate<ACTIVATION>(p.activation, v);
            }
            write<V>(y.at(s), x, p.add);
        });
    }
}

template <int V, Word ACTIVATION> INLINE void group_backward(const NormBackward &p) {
    extern __shared__ __align__(16) unsigned char shared[];
    Slice<V> at(p.channels, p.slice);
    constexpr int QUAD = Slice<V>::QUAD;
    int wide = at.columns * V, group_len = p.channels / p.groups;
    int spatial = (int)p.spatial;
    // Of every channel: v = x a + b; mean, then c and d of d_x = dv a + x c + d; P and Q.
    float *partial = (float *)shared, *a = partial + at.partial_len(), *b = a + at.array_len();
    float *c = b + at.array_len(), *d = c + at.array_len(), *of_p = d + at.array_len(), *of_q = of_p + at.array_len();
    Raw<V> *cache = (Raw<V> *)(of_q + at.array_len());
    Len domain = at.image * p.groups + at.from / group_len;
    for (int t = thread(), g = t / 32; g < wide / group_len; g += THREADS / 32) {
        float mean = of_lane_0(p.mean + domain + g), rstd = of_lane_0(p.rstd + domain + g);
        for (int j = g * group_len + t % 32; j < (g + 1) * group_len; j += 32) {
            Affine affine(p, at.image, at.from + j);
            float gain = rstd * affine.gain;
            a[at.at(j)] = gain;
            b[at.at(j)] = fmaf(-mean, gain, affine.bias);
            c[at.at(j)] = mean;
        }
    }
    __syncthreads();
    auto sources = [&](int column, Source<const Bf16> (&to)[2]) {
        int channel = at.from + column * V;
        to[0] = Source<const Bf16>(p.x, p.x2, p.channels, p.x2_channels, at.image, spatial, channel);
        to[1] = Source<const Bf16>(p.d_y, nullptr, p.channels, 0, at.image, spatial, channel);
    };
    const Source<const Bf16> none(p.x, nullptr, p.channels, 0, 0, 0, 0);
    // Gains of a column: in registers, but where f' needs those, a half at a time.
    auto gains = [&](int column, Pack<QUAD> (&ka)[V / QUAD]) {
#pragma unroll
        for (int h = 0; h < (ACTIVATION == ANY ? 0 : V / QUAD); h++) ka[h] = at.quad(a, column, h);
    };

    for (int start = 0; start < at.columns; start += THREADS) {
        int column = start + at.column;
        float sums[2 * V] = {};
        if (column < at.columns) {
            Pack<QUAD> ka[V / QUAD];
            gains(column, ka);
            Source<const Bf16> from[2] = {none, none};
            sources(column, from);
            each<V, true>(at, column, spatial, p.kept, cache, from, [&](int, const Raw<V>(&raw)[2]) {
#pragma unroll(ACTIVATION == ANY ? 1 : 2)
                for (int h = 0; h < V / QUAD; h++) {
                    Pack<QUAD> x = raw[0].quad(h), d_y = raw[1].quad(h);
                    Pack<QUAD> mean = at.quad(c, column, h), kb = at.quad(b, column, h);
                    Pack<QUAD> gain = ACTIVATION == ANY ? at.quad(a, column, h) : ka[h];
#pragma unroll
                    for (int k = 0; k < QUAD; k++) {
                        float dv = d_y[k] * slope<ACTIVATION>(p.activation, fmaf(x[k], gain[k], kb[k]));
                        sums[k] += dv;
                        sums[V + k] = fmaf(dv, x[k] - mean[k], sums[V + k]);
                    }
                    // The other half's sums, and after it this one's again.
#pragma unroll
                    for (int k = 0; k < V - QUAD; k++) {
                        swap(sums[k], sums[k + QUAD]);
                        swap(sums[V + k], sums[V + k + QUAD]);
                    }
                }
            });
        }
        at.over_rows(sums, partial, start,
                     [&](int which, int c, float sum) { (which ? of_q : of_p)[at.at(c)] = sum; });
    }

    at = Slice<V>(p.channels, p.slice);
    bool of_weights = p.d_gamma || p.d_beta;
    float elements = (float)p.spatial * (float)group_len;
    for (int t = thread(), g = t / 32; g < wide / group_len; g += THREADS / 32) {
        float mean = of_lane_0(p.mean + domain + g), rstd = of_lane_0(p.rstd + domain + g);
        float m1 = 0.0f, m2 = 0.0f;
        for (int j = g * group_len + t % 32; j < (g + 1) * group_len; j += 32) {
            float image_p[1] = {of_p[at.at(j)]}, image_q[1] = {of_q[at.at(j)] * rstd};
            float gain = a[at.at(j)]; // times rstd
            m1 = fmaf(gain, image_p[0], m1);
            m2 = fmaf(gain, image_q[0], m2);
            image_vectors<Bf16, 1>(p, at.image, at.from + j, image_p, image_q);
            if (of_weights) leave_sums<1>(p, p.sums + at.image * 2 * p.channels, at.from + j, image_p, image_q);
        }
        m1 = warp_sum(m1) / elements;
        m2 = warp_sum(m2) / elements * rstd;
        for (int j = g * group_len + t % 32; j < (g + 1) * group_len; j += 32) {
            c[at.at(j)] = -m2;
            d[at.at(j)] = fmaf(mean, m2, -m1);
        }
    }
    __syncthreads();

    at = Slice<V>(p.channels, p.slice);
    for (int column = at.column; column < at.columns; column += THREADS) {
        int channel = at.from + column * V;
        bool second = channel >= p.channels - p.x2_channels, add = second ? p.add2 : p.add;
        if (!(second ? p.d_x2 : p.d_x)) continue;
        Pack<QUAD> ka[V / QUAD];
        gains(column, ka);
        Source<const Bf16> from[2] = {none, none};
        sources(column, from);
        Source<Bf16> to(p.d_x, p.d_x2, p.channels, p.x2_channels, at.image, spatial, channel);
        each<V, false>(at, column, spatial, p.kept, cache, from, [&](int s, const Raw<V>(&raw)[2]) {
            Pack<V> d_x = {};
#pragma unroll(ACTIVATION == ANY ? 1 : 2)
            for (int h = 0; h < V / QUAD; h++) {
                Pack<QUAD> x = raw[0].quad(h), d_y = raw[1].quad(h), kb = at.quad(b, column, h);
                Pack<QUAD> kc = at.quad(c, column, h), kd = at.quad(d, column, h);
                Pack<QUAD> gain = ACTIVATION == ANY ? at.quad(a, column, h) : ka[h];
#pragma unroll
                for (int k = 0; k < QUAD; k++) {
                    float dv = d_y[k] * slope<ACTIVATION>(p.activation, fmaf(x[k], gain[k], kb[k]));
                    // The first half goes up to where it belongs.
                    if (V > QUAD) d_x[k] = d_x[k + V - QUAD];
                    d_x[k + V - QUAD] = fmaf(dv, gain[k], fmaf(x[k], kc[k], kd[k]));
                }
            }
            if (p.joined) {
                Pack<V> before = read<V>(same(from[1].at(s), p.d_y, p.joined));
#pragma unroll
                for (int k = 0; k < V; k++) d_x[k] = before[k] + d_x[k];
            }
            write<V>(to.at(s), d_x, add);
        });
    }

    if (!of_weights || !is_last_block(p.counters + blockIdx.x, gridDim.y)) return;
    at = Slice<V>(p.channels, p.slice);
    for (int start = 0; start < at.columns; start += THREADS) {
        float sums[2 * V] = {};
        if (start + at.column < at.columns) {
            float(&all_p)[V] = *(float(*)[V])sums, (&all_q)[V] = *(float(*)[V])(sums + V);
            for (int image = at.row; image < gridDim.y; image += at.rows) {
                add_sums<V>(p, p.sums + (Len)image * 2 * p.channels, at.from + (start + at.column) * V, all_p, all_q);
            }
        }
        at.over_rows(sums, partial, start, [&](int which, int c, float sum) {
            float *to = which ? p.d_gamma : p.d_beta;
            if (to) put(to + at.from + c, sum, which ? p.add_gamma : p.add_beta);
        });
    }
}

ENTRY(norm_forward_group_bf16, Norm, 256, 4) { group_forward<8, ACTIVATION_NONE>(p); }
ENTRY(norm_forward_group_silu_bf16, Norm, 256, 4) { group_forward<8, ACTIVATION_SILU>(p); }
ENTRY(norm_forward_group_any_bf16, Norm, 256, 4) { group_forward<8, ANY>(p); }
ENTRY(norm_forward_group_odd_bf16, Norm, 256, 4) { group_forward<1, ANY>(p); }
ENTRY(norm_backward_group_bf16, NormBackward, 256, 4) { group_backward<8, ACTIVATION_NONE>(p); }
ENTRY(norm_backward_group_silu_bf16, NormBackward, 256, 4) { group_backward<8, ACTIVATION_SILU>(p); }
ENTRY(norm_backward_group_any_bf16, NormBackward, 256, 4) { group_backward<8, ANY>(p); }
ENTRY(norm_backward_group_odd_bf16, NormBackward, 256, 4) { group_backward<1, ANY>(p); }
