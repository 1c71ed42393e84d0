// Clean images as noising and loss read them: given as values, or picked from a set
// of bytes or floats, mirrored where that is asked for. Byte v of L levels is
// 2 v / (L - 1) - 1, a quotient of integers rounded once.
//
// A block of 256 threads reads 1024 elements, four a thread. What of a set does not lie
// there as it is needed, bytes and mirrored rows, passes through shared memory, which it
// enters in accesses of 128 bits.
#pragma once
#include "common.cuh"

/// The value of a byte. `share` is 1 / (levels - 1) rounded: Markstein's division, whose one
/// correction gives the quotient of numbers as small as these rounded once.
INLINE float image_value(const Images &s, float share, Word byte) {
    int most = (int)s.levels - 1;
    float top = (float)(2 * min((int)byte, most) - most), quotient = top * share;
    return fmaf(fmaf(-quotient, (float)most, top), share, quotient);
}

/// Walks through the elements of an image, its rows mirrored or not. Positions of an image
/// are counted in 32 bits, as the words of its normals.
struct Walk {
    Word at, channel, x;

    INLINE Walk(const Images &s, Word e, bool mirrored) : at(e), channel(0), x(0) {
        if (!mirrored) return;
        Word row = s.width * s.channels, left = e % row;
        x = left / s.channels;
        channel = left % s.channels;
        at = e - left + (s.width - 1 - x) * s.channels + channel;
    }

    INLINE void next(const Images &s, bool mirrored) {
        at++;
        if (!mirrored || ++channel < s.channels) return;
        channel = 0;
        at -= 2 * s.channels;
        if (++x < s.width) return;
        x = 0;
        at += 2 * s.width * s.channels;
    }

    /// As many pixels and channels further, mirrored.
    INLINE void skip(const Images &s, Word pixels, Word channels) {
        at += channels - pixels * s.channels;
        channel += channels;
        x += pixels;
        if (channel >= s.channels) {
            channel -= s.channels;
            at -= 2 * s.channels;
            x++;
        }
        while (x >= s.width) {
            x -= s.width;
            at += 2 * s.width * s.channels;
        }
    }
};

/// Most bytes of a set that a block brings at once: 1024 elements and the rest of their rows.
constexpr Word MOST_STAGED = 8192;

/// Bytes e .. e + 3 of an image whose rows are mirrored, its byte i being staged[begin + i];
/// the lowest first, zeros from `len` on. Lanes read bytes that follow one another, which
/// lie in different banks or one word even where the warp passes from row to row, and
/// exchange them.
INLINE Word mirrored_bytes(const Images &s, const unsigned char *staged, Word begin, Word e, Word len) {
    Word lane = threadIdx.x % 32, at = e - lane * GROUP + lane;
    Word pixels = 32 / s.channels, channels = 32 % s.channels;
    Walk walk(s, at, true);
    Word mine = 0, bytes = 0;
#pragma unroll
    for (int k = 0; k < GROUP; k++, at += 32, walk.skip(s, pixels, channels)) {
        if (at < len) mine |= (Word)staged[begin + walk.at] << (8 * k);
    }
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        Word theirs = __shfl_sync(0xffffffffu, mine, (lane * GROUP + k) % 32);
        bytes |= (theirs >> (lane / 8 * 8) & 255) << (8 * k);
    }
    return bytes;
}

/// Elements e .. e + 3 of image `image` of the batch, zeros from `count` on. The whole block
/// calls it, e being four times the thread's number after a multiple of 1024.
INLINE Group load_image(const Images &s, Len len, Len image, Len e, int count) {
    __shared__ __align__(16) unsigned char staged[MOST_STAGED + 16];
    if (!s.picks) return load((const float *)s.set + image * len + e, count);
    Len from = (Len)min(s.picks[2 * image], s.rows - 1) * len;
    bool mirrored = s.picks[2 * image + 1] != 0;
    if (s.levels == 0 && !mirrored) return load((const float *)s.set + from + e, count);
    const unsigned char *set = (const unsigned char *)s.set;
    Word size = s.levels == 0 ? 4 : 1, own = threadIdx.x * GROUP;
    // What the block needs: its elements, or the rows they lie in.
    Word begin = (Word)e - own, end = min(begin + 256 * GROUP, (Word)len);
    if (mirrored) {
        Word row = s.width * s.channels;
        begin -= begin % row;
        end += row - 1 - (end - 1) % row;
    }
    Len start = (from + begin) * size, first = start & ~(Len)15;
    __syncthreads();
    if ((end - begin) * size <= MOST_STAGED && is_aligned(set)) {
        Word bytes = (Word)(start - first) + (end - begin) * size;
        for (Word i = threadIdx.x * 16; i < bytes; i += 256 * 16) {
            if (first + i + 16 <= s.rows * len * size) {
                *(uint4 *)(staged + i) = *(const uint4 *)(set + first + i);
            } else {
                for (Word b = i; b < bytes; b++) staged[b] = set[first + b];
            }
        }
        // Of the image's first element.
        begin = (Word)(start - first) - begin * size;
    } else {
        // Rows too long: every thread its own elements, in the order in which it reads them.
        Walk walk(s, (Word)e, mirrored);
        for (int k = 0; k < count; k++, walk.next(s, mirrored)) {
            Len at = (from + walk.at) * size;
            for (Word b = 0; b < size; b++) staged[(own + k) * size + b] = set[at + b];
        }
        begin = (own - (Word)e) * size;
        mirrored = false;
    }
    __syncthreads();
    float share = s.levels == 0 ? 0.0f : __frcp_rn((float)((int)s.levels - 1));
    Group g;
    if (mirrored && size == 1) {
        Word bytes = mirrored_bytes(s, staged, begin, (Word)e, (Word)len);
#pragma unroll
        for (int k = 0; k < GROUP; k++) g[k] = k < count ? image_value(s, share, bytes >> (8 * k) & 255) : 0.0f;
        return g;
    }
    Walk walk(s, (Word)e, mirrored);
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        const unsigned char *from = staged + (begin + walk.at * size);
        g[k] = k >= count ? 0.0f : size == 4 ? *(const float *)from : image_value(s, share, *from);
        walk.next(s, mirrored);
    }
    return g;
}
