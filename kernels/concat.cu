// Concatenation along channels, both ways.
//
// a: [rows, c_a], b: [rows, c_b], y: [rows, c_a + c_b], f32 or bf16. Elementwise
// over y; 16 bytes a thread, in one access where neither part splits them.
#include "half.cuh"

/// One element of y's place in its part: the part is a below c_a.
struct Place {
    Len row;
    Word c;
};

INLINE Place place(Len i, Word channels) { return {i / channels, (Word)(i % channels)}; }

template <typename T> INLINE void concat_forward(const Concat &p) {
    constexpr int N = EACH<T>;
    const T *a = (const T *)p.a, *b = (const T *)p.b;
    Word channels = p.c_a + p.c_b;
    Len i = pack_start<N>(), len = p.rows * channels;
    int count = pack_count<N>(i, len);
    if (count == 0) return;
    Place at = place(i, channels);
    Pack<N> y;
    if ((p.c_a | p.c_b) % N == 0) {
        y = at.c < p.c_a ? load<N>(a + at.row * p.c_a + at.c, count)
                         : load<N>(b + at.row * p.c_b + at.c - p.c_a, count);
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) {
            y[k] = 0.0f;
            if (k < count) {
                y[k] = at.c < p.c_a ? widen(a[at.row * p.c_a + at.c]) : widen(b[at.row * p.c_b + at.c - p.c_a]);
            }
            at = at.c + 1 == channels ? Place{at.row + 1, 0} : Place{at.row, at.c + 1};
        }
    }
    store((T *)p.y + i, y, count, p.add);
}

ENTRY(concat_forward_f32, Concat, 256) { concat_forward<float>(p); }
ENTRY(concat_forward_bf16, Concat, 256) { concat_forward<Bf16>(p); }

// d_a or d_b: the part of d_y from channel `from` on. Elementwise over the part.
template <typename T> INLINE void concat_backward(const ConcatBackward &p) {
    constexpr int N = EACH<T>;
    const T *d_y = (const T *)p.d_y;
    Len i = pack_start<N>(), len = p.rows * p.width;
    int count = pack_count<N>(i, len);
    if (count == 0) return;
    Place at = place(i, p.width);
    Pack<N> d;
    if ((p.width | p.from | p.channels) % N == 0) {
        d = load<N>(d_y + at.row * p.channels + p.from + at.c, count);
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) {
            d[k] = k < count ? widen(d_y[at.row * p.channels + p.from + at.c]) : 0.0f;
            at = at.c + 1 == p.width ? Place{at.row + 1, 0} : Place{at.row, at.c + 1};
        }
    }
    store((T *)p.d + i, d, count, p.add);
}

ENTRY(concat_backward_f32, ConcatBackward, 256) { concat_backward<float>(p); }
ENTRY(concat_backward_bf16, ConcatBackward, 256) { concat_backward<Bf16>(p); }
