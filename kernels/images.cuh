// Clean images as noising and loss read them: given as values, or picked from a set
// of bytes or floats, mirrored where that is asked for. Byte v of L levels is
// 2 v / (L - 1) - 1, a quotient of integers rounded once.
#pragma once
#include "common.cuh"

INLINE float image_value(const Images &s, Word byte) {
    int most = (int)s.levels - 1;
    int v = min((int)byte, most);
    return __fdiv_rn((float)(2 * v - most), (float)most);
}

/// Elements e .. e + 3 of image `image` of the batch, zeros from `count` on.
INLINE Group load_image(const Images &s, Len len, Len image, Len e, int count) {
    if (!s.picks) return load((const float *)s.set + image * len + e, count);
    Len from = (Len)min(s.picks[2 * image], s.rows - 1) * len;
    bool mirrored = s.picks[2 * image + 1] != 0;
    Word at[GROUP];
    if (mirrored) {
        // Positions of an image are counted in 32 bits, as the words of its normals.
        Word row = s.width * s.channels, left = (Word)e % row;
        Word start = (Word)e - left, x = left / s.channels, channel = left % s.channels;
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            at[k] = start + (s.width - 1 - x) * s.channels + channel;
            if (++channel == s.channels) {
                channel = 0;
                if (++x == s.width) {
                    x = 0;
                    start += row;
                }
            }
        }
    } else {
#pragma unroll
        for (int k = 0; k < GROUP; k++) at[k] = (Word)e + k;
    }
    Group g;
    if (s.levels == 0) {
        const float *set = (const float *)s.set + from;
        if (!mirrored) return load(set + e, count);
#pragma unroll
        for (int k = 0; k < GROUP; k++) g[k] = k < count ? set[at[k]] : 0.0f;
        return g;
    }
    const unsigned char *set = (const unsigned char *)s.set + from;
    if (!mirrored && count == GROUP && ((unsigned long long)(set + e) & 3) == 0) {
        uchar4 b = *(const uchar4 *)(set + e);
        return {image_value(s, b.x), image_value(s, b.y), image_value(s, b.z), image_value(s, b.w)};
    }
#pragma unroll
    for (int k = 0; k < GROUP; k++) g[k] = k < count ? image_value(s, set[at[k]]) : 0.0f;
    return g;
}
