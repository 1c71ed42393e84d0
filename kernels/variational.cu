// A term of the variational bound for every element, beside it the simple loss of the
// mean, and their gradient; the equations stand in src/ops/variational.rs, the
// decoder's in src/diffusion/vlb.rs.
//
// prediction: [n, pixels, channels or twice as many], x_0: [n, pixels, channels] f32;
// everything is computed in f64 and eps drawn again with the bits that noising used.
// Forward: one block an image; a thread takes every 256th counter in order, then a
// fixed tree. Backward: a thread a counter, blockIdx.y an image.
#include "random.cuh"

// Columns of the coefficients, as in ops::variational::column.
enum {
    GAP_X0 = 0,
    GAP_NOISE = 1,
    GAP_PREDICTION = 2,
    C_0 = 3,
    LN_POSTERIOR = 4,
    LN_SMALL = 5,
    LN_LARGE = 6,
    DECODED = 7,
    WEIGHT = 8,
    SIMPLE_WEIGHT = 9,
    TARGET_X0 = 10,
    TARGET_NOISE = 11,
    COLUMNS = 12
};

constexpr double LN_2_PI = 1.8378770664093454836;

/// ln of the standard normal's mass above x.
INLINE double upper_tail(double x) {
    if (x == (double)INFINITY) return -(double)INFINITY;
    if (x < 5.0) return log(0.5 * erfc(x * 0.70710678118654752440));
    // Laplace's continued fraction of the density over the mass.
    double ratio = x;
    for (int k = 60; k > 0; k--) ratio = x + k / ratio;
    return -0.5 * (x * x + LN_2_PI) - log(ratio);
}

/// -ln p(x_0 | mean, variance) of the decoder and its slopes.
struct Decoded {
    double nats, d_mean, d_ln_variance;
};

/// x y, 0 at an infinite end where y is 0.
INLINE double scaled(double x, double y) { return y == 0.0 ? 0.0 : x * y; }

INLINE Decoded score(double half, double x, double mean, double ln_variance) {
    double inverse = exp(-0.5 * ln_variance);
    double upper = x > 1.0 - half ? (double)INFINITY : (x + half - mean) * inverse;
    double lower = x < half - 1.0 ? -(double)INFINITY : (x - half - mean) * inverse;
    // The mass is taken on the side where the tails are small.
    bool mirrored = lower + upper < 0.0;
    double a = mirrored ? -upper : lower, b = mirrored ? -lower : upper, ln;
    if (a < -1.0) {
        ln = log1p(-exp(upper_tail(-a)) - exp(upper_tail(b)));
    } else {
        double near = upper_tail(a), far = upper_tail(b);
        ln = near + log(-expm1(far - near));
    }
    double at_upper = exp(-0.5 * (upper * upper + LN_2_PI) - ln);
    double at_lower = exp(-0.5 * (lower * lower + LN_2_PI) - ln);
    return {-ln, (at_upper - at_lower) * inverse,
            0.5 * (scaled(upper, at_upper) - scaled(lower, at_lower))};
}

/// One element's loss and its slopes by F and V.
struct Element {
    double loss, d_mean, d_variance;
};

/// `v` is V, 0 where the variance is not learned.
INLINE Element element(const Variational &p, const float *row, double x0, double eps, double mean,
                       double v) {
    auto c = [&](int i) { return (double)row[i]; };
    double gap = c(GAP_X0) * x0 + c(GAP_NOISE) * eps + c(GAP_PREDICTION) * mean;
    double ln_variance = 0.5 * ((1.0 + v) * c(LN_LARGE) + (1.0 - v) * c(LN_SMALL));
    double term, by_gap, by_variance;
    if (c(DECODED) > 0.0) {
        Decoded d = score((double)p.half_bin, x0, x0 - gap, ln_variance);
        term = d.nats, by_gap = -d.d_mean, by_variance = d.d_ln_variance;
    } else {
        double precision = exp(-ln_variance), shape = c(LN_POSTERIOR) - ln_variance;
        double grown = expm1(shape), square = c(C_0) * c(C_0) * gap * gap * precision;
        term = 0.5 * (grown - shape + square);
        by_gap = c(C_0) * c(C_0) * gap * precision;
        by_variance = -0.5 * (grown + square);
    }
    double error = mean - c(TARGET_X0) * x0 - c(TARGET_NOISE) * eps;
    double weight = c(WEIGHT), simple = c(SIMPLE_WEIGHT);
    double through_mean = p.hold_mean ? 0.0 : weight * by_gap * c(GAP_PREDICTION);
    return {simple * error * error + weight * term, 2.0 * simple * error + through_mean,
            weight * by_variance * 0.5 * (c(LN_LARGE) - c(LN_SMALL))};
}

/// Where F of element e lies in the prediction of its image; V follows after
/// `channels`.
INLINE Len position(const Variational &p, Len e) {
    return p.learned ? e + e / p.channels * p.channels : e;
}

/// Calls f(position of F, element) for the group at e of an image.
template <class F> INLINE void for_group(const Variational &p, Len image, Len e, F f) {
    int count = group_count(e, p.len);
    const float *row = p.coefficients + image * COLUMNS;
    const float *prediction = p.prediction + image * p.len * (p.learned ? 2 : 1);
    Group eps = normals(p.keys + image * 4, TRAIN_NOISE, 0, (Word)(e / GROUP));
    // Not unrolled: the decoder is long.
#pragma unroll 1
    for (int k = 0; k < count; k++) {
        Len at = position(p, e + k);
        double v = p.learned ? (double)prediction[at + p.channels] : 0.0;
        double x0 = (double)p.x0[image * p.len + e + k];
        double noise = (double)(k == 0 ? eps[0] : k == 1 ? eps[1] : k == 2 ? eps[2] : eps[3]);
        f(at, element(p, row, x0, noise, (double)prediction[at], v));
    }
}

ENTRY(variational_forward_f32, Variational, 256, 2) {
    Len image = blockIdx.x;
    double sum = 0.0;
    for (Len e = (Len)threadIdx.x * GROUP; e < p.len; e += 256 * GROUP) {
        for_group(p, image, e, [&](Len, Element found) { sum += found.loss; });
    }
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) put(p.out + image, (float)(sum / (double)p.len), p.add);
}

ENTRY(variational_backward_f32, Variational, 256, 2) {
    Len e = group_start(), image = blockIdx.y;
    double scale = (double)p.scale / (double)p.len;
    float *d = p.out + image * p.len * (p.learned ? 2 : 1);
    for_group(p, image, e, [&](Len at, Element found) {
        put(d + at, (float)(scale * found.d_mean), p.add);
        if (p.learned) put(d + at + p.channels, (float)(scale * found.d_variance), p.add);
    });
}
