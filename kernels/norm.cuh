// What the norms of either type share: where x and its gradient lie.
#pragma once
#include "common.cuh"

/// A tensor that may be two side by side in channels, at the channels of a thread's column.
template <typename T> struct Source {
    T *first;
    int pitch; // elements from position to position
    INLINE Source(T *x, T *x2, int channels, int x2_channels, Len image, Len spatial, int c) {
        bool second = c >= channels - x2_channels;
        pitch = second ? x2_channels : channels - x2_channels;
        first = (second ? x2 + c - (channels - x2_channels) : x + c) + image * spatial * pitch;
    }
    INLINE T *at(Len s) const { return first + s * pitch; }
};
