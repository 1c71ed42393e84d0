// y[oy,ox,c] = largest or mean value of the window's pixels inside the image, and
// its gradient: that of a mean in equal shares, that of a maximum to its first pixel.
//
// x: [n, h, w, c], y: [n, oh, ow, c] f32, sums in f32, row by row. A thread has up to
// four channels of one pixel of the result, blockIdx.y an image; both passes gather,
// so no two threads write the same element.
#include "common.cuh"

/// Positions `from .. to` along an axis.
struct Span {
    int from, to;
};

/// Positions inside the image of the window of output o.
INLINE Span window(const Pooling &p, int o, int kernel, int len) {
    int from = o * p.stride - p.padding;
    return {max(from, 0), min(from + kernel, len)};
}

/// Outputs whose windows hold position i.
INLINE Span holders(const Pooling &p, int i, int kernel, int outputs) {
    int last = (i + p.padding) / p.stride, past = i + p.padding + 1 - kernel;
    int first = past > 0 ? (past + p.stride - 1) / p.stride : 0;
    return {first, min(last + 1, outputs)};
}

/// Channels `channel .. channel + count` of pixel (y, x) of the thread's result.
struct Place {
    int y, x, channel, count;

    INLINE Place(const Pooling &p, int height, int width) {
        int groups = (p.c + GROUP - 1) / GROUP;
        Len i = (Len)blockIdx.x * blockDim.x + threadIdx.x;
        Len pixel = i / groups;
        channel = (int)(i % groups) * GROUP;
        y = (int)(pixel / width), x = (int)(pixel % width);
        count = y < height ? min(GROUP, p.c - channel) : 0;
    }
};

ENTRY(pooling_forward_f32, Pooling, 256) {
    Place at(p, p.oh, p.ow);
    if (at.count == 0) return;
    const float *image = p.x + blockIdx.y * (Len)p.h * p.w * p.c + at.channel;
    Span rows = window(p, at.y, p.kernel_h, p.h), columns = window(p, at.x, p.kernel_w, p.w);
    float start = p.mean ? 0.0f : -INFINITY;
    Group y = {start, start, start, start};
    for (int iy = rows.from; iy < rows.to; iy++) {
        for (int ix = columns.from; ix < columns.to; ix++) {
            Group x = load(image + ((Len)iy * p.w + ix) * p.c, at.count);
#pragma unroll
            for (int k = 0; k < GROUP; k++) {
                // A NaN stays one.
                bool larger = x[k] > y[k] || x[k] != x[k];
                y[k] = p.mean ? y[k] + x[k] : larger ? x[k] : y[k];
            }
        }
    }
    float share = 1.0f / (float)((rows.to - rows.from) * (columns.to - columns.from));
#pragma unroll
    for (int k = 0; k < GROUP; k++) y[k] = p.mean ? y[k] * share : y[k];
    Len out = ((blockIdx.y * (Len)p.oh + at.y) * p.ow + at.x) * p.c + at.channel;
    store(p.y + out, y, at.count, p.add);
}

/// 1 for the channels in which (iy, ix) is the first largest pixel of a window.
INLINE Group is_first(const Pooling &p, const float *image, Place at, Group own, Span rows,
                      Span columns) {
    Group first = {1.0f, 1.0f, 1.0f, 1.0f};
    for (int y = rows.from; y < rows.to; y++) {
        for (int x = columns.from; x < columns.to; x++) {
            bool before = y < at.y || (y == at.y && x < at.x);
            Group other = load(image + ((Len)y * p.w + x) * p.c, at.count);
#pragma unroll
            for (int k = 0; k < GROUP; k++) {
                bool below = before ? other[k] < own[k] : other[k] <= own[k];
                first[k] = below ? first[k] : 0.0f;
            }
        }
    }
    return first;
}

ENTRY(pooling_backward_f32, Pooling, 256) {
    Place at(p, p.h, p.w);
    if (at.count == 0) return;
    const float *image = p.x + blockIdx.y * (Len)p.h * p.w * p.c + at.channel;
    const float *d_image = p.d_y + blockIdx.y * (Len)p.oh * p.ow * p.c + at.channel;
    Len own = ((Len)at.y * p.w + at.x) * p.c;
    Span from_y = holders(p, at.y, p.kernel_h, p.oh), from_x = holders(p, at.x, p.kernel_w, p.ow);
    Group sum = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int oy = from_y.from; oy < from_y.to; oy++) {
        for (int ox = from_x.from; ox < from_x.to; ox++) {
            Span rows = window(p, oy, p.kernel_h, p.h), columns = window(p, ox, p.kernel_w, p.w);
            Group d = load(d_image + ((Len)oy * p.ow + ox) * p.c, at.count), part;
            if (p.mean) {
                float share =
                    1.0f / (float)((rows.to - rows.from) * (columns.to - columns.from));
                part = {share, share, share, share};
            } else {
                part = is_first(p, image, at, load(image + own, at.count), rows, columns);
            }
#pragma unroll
            for (int k = 0; k < GROUP; k++) sum[k] += d[k] * part[k];
        }
    }
    store(p.y + blockIdx.y * (Len)p.h * p.w * p.c + own + at.channel, sum, at.count, p.add);
}
