// Nearest, average pooling and FIR, both ways: each is a separable linear map whose
// every output row and column gathers from a short window of consecutive input rows
// and columns, with weights from a table of four.
//
// x: [n, h, w, c], y: [n, oh, ow, c], f32 or bf16. A thread takes the channels of an
// output pixel that 16 bytes hold and sums in f32; blocks over the pixels and channels of an image along x, images along y.
// The order of the sum is the window's, as on the CPU.
#include "half.cuh"

/// Inputs that one output gathers along an axis: first .. first + count, where
/// input first + i has weight weights[tap + i step]. Outside, inputs are mirrored.
struct Window {
    int first, count, tap, step;
};

INLINE int floor_div(int a, int b) {
    int q = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

INLINE int ceil_div(int a, int b) { return -floor_div(-a, b); }

/// Indices i with 0 <= tap(i) < 4 for tap(i) = origin + i step; those of 0 .. len
/// alone where len >= 0.
INLINE Window of_taps(int origin, int step, int len) {
    int first, last;
    if (step > 0) {
        first = ceil_div(-origin, step);
        last = floor_div(3 - origin, step);
    } else {
        first = ceil_div(origin - 3, -step);
        last = floor_div(origin, -step);
    }
    if (len >= 0) {
        first = max(first, 0);
        last = min(last, len - 1);
    }
    return {first, max(last - first + 1, 0), origin + first * step, step};
}

/// Window `k` of 3 of output o: the second and third are the mirror images of o,
/// which backward has at a mirroring edge.
INLINE Window window(const Resample &p, int k, int o, int inputs, int outputs) {
    Window none = {0, 0, 0, 0};
    if (p.method != RESAMPLE_FIR) {
        if (k > 0) return none;
        bool spread = (p.method == RESAMPLE_NEAREST) != (bool)p.backward;
        if (!spread) return {o * (int)p.factor, (int)p.factor, 0, 0};
        int from = o / (int)p.factor;
        // Backward of pooling: nothing reaches the remainder that it dropped.
        return {from, from < inputs ? 1 : 0, 0, 0};
    }
    if (!p.backward) {
        if (k > 0) return none;
        return of_taps(p.pad - o * (int)p.down, p.up, p.reflect ? -1 : inputs);
    }
    int last = outputs - 1, pixel = o;
    if (k == 1) pixel = p.reflect && o != 0 ? -o : outputs * 2;
    if (k == 2) pixel = p.reflect && o != last ? 2 * last - o : outputs * 2;
    if (k > 0 && pixel == outputs * 2) return none;
    return of_taps(pixel * (int)p.up + p.pad, -(int)p.down, inputs);
}

/// Input i of a window on an axis of len, mirrored at the ends.
INLINE int input_of(Window w, int i, int len) {
    int last = len - 1;
    return last - abs(last - abs(w.first + i));
}

template <typename T> INLINE void resample(const Resample &p) {
    constexpr int N = EACH<T>;
    Word groups = (p.c + N - 1) / N;
    Len task = (Len)blockIdx.x * 256 + threadIdx.x;
    if (task >= (Len)p.oh * p.ow * groups) return;
    Word c = (Word)(task % groups) * N;
    Word pixel = (Word)(task / groups);
    int oy = pixel / p.ow, ox = pixel % p.ow;
    int count = pack_count<N>(c, p.c);
    const T *x = (const T *)p.x + (Len)blockIdx.y * p.h * p.w * p.c;
    T *y = (T *)p.y + ((Len)blockIdx.y * p.oh * p.ow + pixel) * p.c + c;
    Pack<N> sum = {};
    bool empty = !p.add;
    if (p.add) sum = load<N>((const T *)y, count);
    for (int a = 0; a < 3; a++) {
        Window rows = window(p, a, oy, p.h, p.oh);
        for (int i = 0; i < rows.count; i++) {
            float row_weight = p.weights[rows.tap + i * rows.step];
            Len row = (Len)input_of(rows, i, p.h) * p.w;
            for (int b = 0; b < 3; b++) {
                Window columns = window(p, b, ox, p.w, p.ow);
                for (int j = 0; j < columns.count; j++) {
                    float weight = row_weight * p.weights[columns.tap + j * columns.step];
                    Pack<N> v = load<N>(x + (row + input_of(columns, j, p.w)) * p.c + c, count);
#pragma unroll
                    for (int k = 0; k < N; k++) {
                        sum[k] = empty ? weight * v[k] : fmaf(v[k], weight, sum[k]);
                    }
                    empty = false;
                }
            }
        }
    }
    store(y, sum, count);
}

ENTRY(resample_f32, Resample, 256) { resample<float>(p); }
ENTRY(resample_bf16, Resample, 256) { resample<Bf16>(p); }
