// Concatenation along channels, both ways.
//
// a: [rows, c_a], b: [rows, c_b], y: [rows, c_a + c_b], f32. Elementwise over y;
// four channels a thread where neither part nor the sum splits a group of four.
#include "common.cuh"

/// One element of y's place in its part: the part is a below c_a.
struct Place {
    Len row;
    Word c;
};

INLINE Place place(Len i, Word channels) { return {i / channels, (Word)(i % channels)}; }

ENTRY(concat_forward_f32, Concat, 256) {
    Word channels = p.c_a + p.c_b;
    Len i = group_start(), len = p.rows * channels;
    int count = group_count(i, len);
    if (count == 0) return;
    Place at = place(i, channels);
    Group y;
    if ((p.c_a | p.c_b) % GROUP == 0) {
        y = at.c < p.c_a ? load(p.a + at.row * p.c_a + at.c, count)
                         : load(p.b + at.row * p.c_b + at.c - p.c_a, count);
    } else {
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            y[k] = 0.0f;
            if (k < count) {
                y[k] = at.c < p.c_a ? p.a[at.row * p.c_a + at.c] : p.b[at.row * p.c_b + at.c - p.c_a];
            }
            at = at.c + 1 == channels ? Place{at.row + 1, 0} : Place{at.row, at.c + 1};
        }
    }
    store(p.y + i, y, count, p.add);
}

// d_a or d_b: the part of d_y from channel `from` on. Elementwise over the part.
ENTRY(concat_backward_f32, ConcatBackward, 256) {
    Len i = group_start(), len = p.rows * p.width;
    int count = group_count(i, len);
    if (count == 0) return;
    Place at = place(i, p.width);
    Group d;
    if ((p.width | p.from | p.channels) % GROUP == 0) {
        d = load(p.d_y + at.row * p.channels + p.from + at.c, count);
    } else {
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            d[k] = k < count ? p.d_y[at.row * p.channels + p.from + at.c] : 0.0f;
            at = at.c + 1 == p.width ? Place{at.row + 1, 0} : Place{at.row, at.c + 1};
        }
    }
    store(p.d + i, d, count, p.add);
}
