// Group normalisation in bf16 of small images, 4x4 and 8x8: norm_group_half.cu's equations, a
// warp a slice of an image.
//
// A slice is whole groups of a power of two of columns (8 channels: 16 bytes), two at least:
// a sector. Lanes stand in a grid of columns x rows (positions). A block's WARPS slices lie
// side by side, and it takes several images, whose whole slices it asks for at once: lanes
// have SLOTS packs of 16 bytes in flight, and gamma and beta are read once for all images. An
// image's sums are of its warp's lanes alone, mean and variance in two passes over what is
// kept. x may lie in two tensors side by side in channels.
//
// Backward a lane adds up P and Q of its channels over all images of the block, which are
// then added over rows: `sums` [blocks of images, 2, channels]. The block that is the last
// of its slices adds those up, a thread row those that are its number apart.
#include "copies.cuh"
#include "norm_half.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS;

/// Packs that a lane keeps of each tensor: images of the block x positions of the lane.
constexpr int SLOTS = 8;

/// Most columns of a slice, and of a block.
constexpr int MOST_ALONG = 8, MOST_COLUMNS = WARPS * MOST_ALONG;

/// Where a lane stands.
struct Lane {
    int along, rows;     // lanes beside one another, and rows of them
    int column, row;     // column among the block's
    int channel;         // first of the lane's
    int group_columns;
    int turns;           // positions of the lane in an image
    int first, images;   // of the block
    bool there;          // whether its slice exists

    template <class P> INLINE Lane(const P &p) {
        along = p.slice / (8 * WARPS);
        rows = 32 / along;
        row = threadIdx.x % 32 / along;
        column = threadIdx.x / 32 * along + threadIdx.x % along;
        channel = blockIdx.x * p.slice + column * 8;
        group_columns = p.channels / p.groups / 8;
        turns = ((int)p.spatial + rows - 1) / rows;
        first = blockIdx.y * p.kept;
        images = min(p.kept, p.n - first);
        there = channel < p.channels;
    }

    /// A tensor of all channels, or two side by side, at the first image's positions; those of
    /// the next image follow.
    template <typename T>
    INLINE Source<T> source(const void *x, const void *x2, int channels, int x2_channels, int spatial) const {
        return Source<T>(x, x2, channels, x2_channels, first, spatial, channel);
    }

    /// Calls f(slot, position) for the lane's positions of an image.
    template <class F> INLINE void each(int image, int spatial, F f) const {
#pragma unroll 1
        for (int k = 0; k < turns; k++)
            if (row + k * rows < spatial) f(image * turns + k, row + k * rows);
    }

    /// Starts the copies of all images to the lane's own slots.
    INLINE void fetch(const Source<const Bf16> &from, int spatial, uint4 (*slots)[THREADS]) const {
        if (!there) return;
        for (int i = 0; i < images; i++) {
            each(i, spatial, [&](int slot, int s) {
                copy16(shared_address(&slots[slot][threadIdx.x]), from.at(i * spatial + s), 1);
            });
        }
    }

    /// Sum over the lanes of the group; all of them get it.
    INLINE float over_group(float x) const {
        for (int d = 1; d < group_columns; d *= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
        for (int d = along; d < 32; d *= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
        return x;
    }
};

enum { GAMMA, BETA };

/// Gamma and beta of the block's channels: the first quads of all columns, then the second,
/// in other banks.
struct Vectors {
    float4 quads[2][2][MOST_COLUMNS + 4];

    INLINE Pack<4> quad(int which, int half, int column) const { return shared_quad(&quads[which][half][column]); }

    /// Block-wide; a barrier must follow.
    template <class P> INLINE void stage(const P &p) {
        for (int i = threadIdx.x; i < p.slice / 4; i += THREADS) {
            int c = blockIdx.x * p.slice + i * 4;
            if (c >= p.channels) continue;
            quads[GAMMA][i % 2][i / 2] = p.gamma ? *(const float4 *)(p.gamma + c) : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
            quads[BETA][i % 2][i / 2] = p.beta ? *(const float4 *)(p.beta + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    }
};

template <Word ACTIVATION> INLINE void small_forward(const Norm &p) {
    __shared__ uint4 kept[SLOTS][THREADS];
    __shared__ Vectors vectors;
    Lane at(p);
    int spatial = (int)p.spatial;
    at.fetch(at.source<const Bf16>(p.x, p.x2, p.channels, p.x2_channels, spatial), spatial, kept);
    vectors.stage(p);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    if (!at.there) return;
    Source<Bf16> y = at.source<Bf16>(p.y, nullptr, p.channels, 0, spatial);
    float elements = (float)(spatial * at.group_columns * 8);
#pragma unroll 1
    for (int i = 0; i < at.images; i++) {
        auto raw = [&](int slot) { return Raw<8>{kept[slot][threadIdx.x]}; };
        float sum = 0.0f, squares = 0.0f;
        at.each(i, spatial, [&](int slot, int) {
            Pack<8> x = raw(slot).widened();
#pragma unroll
            for (int k = 0; k < 8; k++) sum += x[k];
        });
        float mean = at.over_group(sum) / elements;
        at.each(i, spatial, [&](int slot, int) {
            Pack<8> x = raw(slot).widened();
#pragma unroll
            for (int k = 0; k < 8; k++) squares = fmaf(x[k] - mean, x[k] - mean, squares);
        });
        float rstd = 1.0f / sqrtf(at.over_group(squares) / elements + p.eps);
        if (at.row == 0 && at.column % at.group_columns == 0) {
            Len domain = (Len)(at.first + i) * p.groups + at.channel / 8 / at.group_columns;
            p.mean[domain] = mean;
            p.rstd[domain] = rstd;
        }
        at.each(i, spatial, [&](int slot, int s) {
            Pack<8> x = raw(slot).widened();
#pragma unroll
            for (int h = 0; h < 2; h++) {
                Pack<4> gamma = vectors.quad(GAMMA, h, at.column), beta = vectors.quad(BETA, h, at.column);
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    float xhat = (x[h * 4 + k] - mean) * rstd;
                    x[h * 4 + k] = activate<ACTIVATION>(ACTIVATION, fmaf(xhat, gamma[k], beta[k]));
                }
            }
            write<8>(y.at(i * spatial + s), x, p.add);
        });
    }
}

template <Word ACTIVATION> INLINE void small_backward(const NormBackward &p) {
    __shared__ uint4 kept[2][SLOTS][THREADS];
    __shared__ Vectors vectors;
    // Of every image and group of the block.
    __shared__ float statistics[2][SLOTS * MOST_COLUMNS];
    Lane at(p);
    int spatial = (int)p.spatial, groups = p.slice / 8 / at.group_columns;
    Source<const Bf16> of_y = at.source<const Bf16>(p.d_y, nullptr, p.channels, 0, spatial);
    at.fetch(at.source<const Bf16>(p.x, p.x2, p.channels, p.x2_channels, spatial), spatial, kept[0]);
    at.fetch(of_y, spatial, kept[1]);
    vectors.stage(p);
    for (int j = threadIdx.x; j < at.images * groups; j += THREADS) {
        int g = blockIdx.x * groups + j % groups;
        if (g >= p.groups) continue;
        Len domain = (Len)(at.first + j / groups) * p.groups + g;
        statistics[0][j] = p.mean[domain];
        statistics[1][j] = p.rstd[domain];
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();

    bool second = at.channel >= p.channels - p.x2_channels, add = second ? p.add2 : p.add;
    bool of_x = second ? p.d_x2 : p.d_x, of_weights = p.d_gamma || p.d_beta;
    Source<Bf16> to = at.source<Bf16>(p.d_x, p.d_x2, p.channels, p.x2_channels, spatial);
    float elements = (float)(spatial * at.group_columns * 8);
    float of_p[8] = {}, of_q[8] = {};
#pragma unroll 1
    for (int i = 0; i < (at.there ? at.images : 0); i++) {
        int group = i * groups + at.column / at.group_columns;
        float mean = statistics[0][group], rstd = statistics[1][group];
        // Calls f(channel, gain, xhat, dv) for half a pack.
        auto half = [&](int slot, int h, auto f) {
            Pack<4> x = Raw<8>{kept[0][slot][threadIdx.x]}.quad(h);
            Pack<4> d_y = Raw<8>{kept[1][slot][threadIdx.x]}.quad(h);
            Pack<4> gamma = vectors.quad(GAMMA, h, at.column), beta = vectors.quad(BETA, h, at.column);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float xhat = (x[k] - mean) * rstd;
                float dv = d_y[k] * slope<ACTIVATION>(ACTIVATION, fmaf(xhat, gamma[k], beta[k]));
                f(h * 4 + k, gamma[k], xhat, dv);
            }
        };
        float m1 = 0.0f, m2 = 0.0f;
        at.each(i, spatial, [&](int slot, int) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                half(slot, h, [&](int k, float gain, float xhat, float dv) {
                    of_p[k] += dv;
                    of_q[k] = fmaf(dv, xhat, of_q[k]);
                    m1 = fmaf(dv, gain, m1);
                    m2 = fmaf(dv * gain, xhat, m2);
                });
            }
        });
        m1 = at.over_group(m1) / elements;
        m2 = at.over_group(m2) / elements;
        if (!of_x) continue;
        at.each(i, spatial, [&](int slot, int s) {
            Pack<8> d_x;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                half(slot, h, [&](int k, float gain, float xhat, float dv) {
                    d_x[k] = rstd * fmaf(-xhat, m2, fmaf(dv, gain, -m1));
                });
            }
            if (p.joined) {
                Pack<8> before = read<8>(same(of_y.at(i * spatial + s), p.d_y, p.joined));
#pragma unroll
                for (int k = 0; k < 8; k++) d_x[k] = before[k] + d_x[k];
            }
            write<8>(to.at(i * spatial + s), d_x, add);
        });
    }
    if (!of_weights) return;

#pragma unroll
    for (int k = 0; k < 8; k++) {
        for (int d = at.along; d < 32; d *= 2) {
            of_p[k] += __shfl_xor_sync(0xffffffffu, of_p[k], d);
            of_q[k] += __shfl_xor_sync(0xffffffffu, of_q[k], d);
        }
    }
    Len row = 2 * p.channels;
    if (at.there && at.row == 0) leave_sums<8>(p, p.sums + blockIdx.y * row, at.channel, of_p, of_q);
    if (!is_last_block(p.counters + blockIdx.x, gridDim.y)) return;
    // Quads of P, then of Q, of the block's channels.
    float4(&rows)[THREADS] = *(float4(*)[THREADS])kept;
    int quads = p.slice / 4, lines = THREADS / (2 * quads), line = threadIdx.x / (2 * quads);
    int which = threadIdx.x / quads % 2, c = blockIdx.x * p.slice + threadIdx.x % quads * 4;
    Pack<4> sum = {};
    if (c < p.channels) {
        for (int i = line; i < gridDim.y; i += lines) {
            Pack<4> more = read<4>((const float *)p.sums + i * row + which * p.channels + c);
#pragma unroll
            for (int k = 0; k < 4; k++) sum[k] += more[k];
        }
    }
    rows[threadIdx.x] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    __syncthreads();
    float *d = which ? p.d_gamma : p.d_beta;
    if (line > 0 || c >= p.channels || !d) return;
    for (int l = 1; l < lines; l++) {
        Pack<4> more = shared_quad(&rows[l * 2 * quads + threadIdx.x]);
#pragma unroll
        for (int k = 0; k < 4; k++) sum[k] += more[k];
    }
    write<4>(d + c, sum, which ? p.add_gamma : p.add_beta);
}

ENTRY(norm_forward_group_small_bf16, Norm, 128, 8) { small_forward<ACTIVATION_NONE>(p); }
ENTRY(norm_forward_group_small_silu_bf16, Norm, 128, 8) { small_forward<ACTIVATION_SILU>(p); }
ENTRY(norm_backward_group_small_bf16, NormBackward, 128, 8) { small_backward<ACTIVATION_NONE>(p); }
ENTRY(norm_backward_group_small_silu_bf16, NormBackward, 128, 8) { small_backward<ACTIVATION_SILU>(p); }
