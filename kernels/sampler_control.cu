// What decides about a sampler's stage image by image: norms and Langevin rows, the
// error norm and control of an adaptive step, known pixels blended in, x_0 and the
// direction of a residual. Equations in src/ops/sampler_{langevin,rk45,blend,
// estimate}.rs.
//
// State: [n, len] f32. Sums run over one image in a block: a thread takes every
// 256th group of four in order, squares are summed in f64, then over the block in a
// fixed tree; so an image's bits do not depend on its batch. Rows and control are a
// thread an image (or an element of the rows), in one block.
#include "sampler_step.cuh"

constexpr Word KNOWN = 12; // random::Purpose::Known

template <typename T> INLINE void sampler_norms(const SamplerNorms &p) {
    const SamplerStep &s = p.step;
    Word image = blockIdx.x, stage = stage_of(s.stage, s.stages);
    float *norms = p.norms + 2 * (Len)image;
    if (p.rules[stage] != 1.0f) {
        if (threadIdx.x == 0) norms[0] = norms[1] = 0.0f;
        return;
    }
    const float *row = row_of(s, stage, image);
    Len len = (Len)s.spatial * s.channels;
    const float *x = slot_of(s, row[INPUT_SLOT]) + image * len;
    double eps_sum = 0.0, z_sum = 0.0;
    for (Len first = 0; first < len; first += 256 * GROUP) {
        Len e = first + threadIdx.x * GROUP;
        int count = group_count(e, len);
        Group v = load(x + e, count), prediction = predict<T>(s, image, e, count, row[GUIDANCE]);
        Group z = s.noise ? load(s.noise + image * len + e, count)
                          : normals(s.keys + image * 4, SAMPLE_STEP, (Word)row[DRAW], (Word)(e / GROUP));
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            if (k >= count) continue;
            float eps = row[EPS_STATE] * v[k] + row[EPS_PREDICTION] * prediction[k];
            eps_sum += (double)(eps * eps);
            z_sum += (double)(z[k] * z[k]);
        }
    }
    eps_sum = block_sum<256>(eps_sum);
    z_sum = block_sum<256>(z_sum);
    if (threadIdx.x == 0) {
        norms[0] = (float)sqrt(eps_sum);
        norms[1] = (float)sqrt(z_sum);
    }
}

ENTRY(sampler_norms_f32, SamplerNorms, 256, 4) { sampler_norms<float>(p); }
ENTRY(sampler_norms_bf16, SamplerNorms, 256, 4) { sampler_norms<Bf16>(p); }

ENTRY(sampler_langevin_f32, SamplerLangevin, 256) {
    __shared__ float means[2];
    Word stage = stage_of(p.stage, p.stages), next = min(stage + 1, p.stages - 1);
    bool follows = p.rules[stage] == 1.0f;
    if (threadIdx.x < 2) {
        double sum = 0.0;
        Word count = follows && p.batch_norm ? p.n : 0;
        for (Word i = 0; i < count; i++) sum += (double)p.norms[2 * i + threadIdx.x];
        means[threadIdx.x] = (float)(sum / (double)p.n);
    }
    __syncthreads();
    for (Word i = threadIdx.x; i < p.n * COLUMNS; i += 256) {
        Word image = i / COLUMNS, column = i % COLUMNS;
        float v = p.table[stage * COLUMNS + column];
        p.rows[p.n * COLUMNS + i] = p.table[next * COLUMNS + column];
        if (follows && column >= OUTPUT) {
            float eps = p.batch_norm ? means[0] : p.norms[2 * image];
            float z = p.batch_norm ? means[1] : p.norms[2 * image + 1];
            // Where there is no score there is nothing to follow.
            float ratio = eps > 0.0f ? z / eps : 0.0f;
            Word place = (column - OUTPUT) % COEFFICIENTS;
            if (place == OF_EPS) v *= ratio * ratio;
            if (place == OF_NOISE) v *= ratio;
        }
        p.rows[i] = v;
    }
}

ENTRY(sampler_error_f32, SamplerError, 256) {
    if (p.stage[0] != p.accept) return;
    Len at = (Len)blockIdx.x * p.len;
    double sum = 0.0;
    for (Len i = (Len)threadIdx.x * GROUP; i < p.len; i += 256 * GROUP) {
        int count = group_count(i, p.len);
        Group y = load(p.y + at + i, count), next = load(p.next + at + i, count), e = load(p.e + at + i, count);
        for (int k = 0; k < count; k++) {
            float v = e[k] / (p.atol + p.rtol * fmaxf(fabsf(y[k]), fabsf(next[k])));
            sum += (double)(v * v);
        }
    }
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) p.error[blockIdx.x] = (float)(sqrt(sum) / sqrt((double)p.len));
}

// Constants of ops::sampler_rk45.
enum { STAGES = 10, STEP = 1, ACCEPT = 7, KEEP = 8, END = 9 };
enum { SLOT_STATE = 0, SLOT_ARGUMENT = 1, FIRST_SLOPE = 2, LAST_SLOPE = 5, MOST_SLOTS = 7 };
enum {
    CURVE_LABEL = 0,
    CURVE_INPUT_SCALE = 1,
    CURVE_X0_STATE = 2,
    CURVE_X0_PREDICTION = 3,
    CURVE_COSINE = 4,
    CURVE_COLUMNS = 5
};
enum { TIME = 0, TRIED = 1, STATUS = 2, EVALUATIONS = 3, ACCEPTED = 4, REJECTED = 5, LAST = 6, ACCEPTS = 7 };
constexpr float RUNNING = 0.0f, ARRIVED = 1.0f, STUCK = 2.0f;
__constant__ const float NODES[7] = {0.0f, 0.2f, 0.3f, 0.8f, (float)(8.0 / 9.0), 1.0f, 1.0f};

/// One column of the curve at u, linear between its rows.
INLINE float curve_at(const SamplerRk45 &p, float u, int column) {
    float position = clamp((u - p.first) / p.spacing, 0.0f, (float)(p.nodes - 1));
    Word below = min((Word)position, p.nodes - 2);
    float part = position - (float)below;
    float low = p.curve[below * CURVE_COLUMNS + column];
    float high = p.curve[(below + 1) * CURVE_COLUMNS + column];
    return low + part * (high - low);
}

/// Accepts or rejects an image's step and chooses the next.
INLINE void decide(const SamplerRk45 &p, float error, float *s) {
    bool after_rejection = s[ACCEPTS] == 0.0f && s[REJECTED] > 0.0f;
    double predicted = 10.0;
    // Also where the error is not a number: fmax takes the other side.
    if (error != 0.0f) predicted = fmin(fmax(0.9 * pow((double)error, -0.2), 0.2), 10.0);
    bool accepts = error <= 1.0f;
    s[ACCEPTS] = accepts ? 1.0f : 0.0f;
    double factor = accepts && !after_rejection ? predicted : fmin(predicted, 1.0);
    if (accepts) {
        s[ACCEPTED] += 1.0f;
        if (s[LAST] != 0.0f) {
            s[TIME] = p.end;
            s[STATUS] = ARRIVED;
            return;
        }
        s[TIME] += s[TRIED];
    } else {
        s[REJECTED] += 1.0f;
    }
    float step = clamp((float)(factor * (double)s[TRIED]), -p.most, p.most);
    float left = p.end - s[TIME];
    // A remainder that could not be a step of its own is taken along.
    float least = 4.0f * 1.1920929e-7f * fmaxf(fabsf(s[TIME]), 1.0f);
    bool last = fabsf(step) >= fabsf(left) - least;
    if (last) step = left;
    s[LAST] = last ? 1.0f : 0.0f;
    s[TRIED] = step;
    if (!accepts && fabsf(step) < least) s[STATUS] = STUCK;
}

INLINE void swap(float &a, float &b) {
    float t = a;
    a = b;
    b = t;
}

/// Control of one image; whether it is on its way.
INLINE bool control(const SamplerRk45 &p, Word stage, Word image) {
    float *now = p.rows + image * COLUMNS, *later = p.rows + (p.n + image) * COLUMNS;
    float *s = p.state + image * 8;
    Word next = min(stage + 1, (Word)STAGES - 1);
    for (int c = 0; c < COLUMNS; c++) {
        now[c] = p.table[stage * COLUMNS + c];
        later[c] = p.table[next * COLUMNS + c];
    }
    bool was_running = s[STATUS] == RUNNING;
    if (stage == 0 && was_running) s[EVALUATIONS] += 1.0f;
    if (stage == ACCEPT) {
        if (was_running) {
            s[EVALUATIONS] += (float)(ACCEPT - STEP);
            decide(p, p.error[image], s);
        } else {
            s[ACCEPTS] = 0.0f;
        }
    }
    bool accepts = s[ACCEPTS] != 0.0f;
    bool is_written = stage == KEEP ? accepts : stage == END || was_running;
    if (!is_written) now[TARGET] = now[TARGET + 1] = -1.0f;
    float u = s[TIME], h = s[TRIED];
    if (stage < ACCEPT) {
        float at = u + NODES[stage] * h;
        now[X0_STATE] = curve_at(p, at, CURVE_X0_STATE);
        now[X0_PREDICTION] = curve_at(p, at, CURVE_X0_PREDICTION);
        float cosine = curve_at(p, at, CURVE_COSINE);
        now[EPS_STATE] = cosine * cosine;
        now[EPS_PREDICTION] = 0.0f;
        for (int k = 0; k < 2; k++) {
            float *c = now + OUTPUT + k * COEFFICIENTS;
            c[OF_X0] = -cosine * c[OF_EPS];
        }
    }
    if (stage == ACCEPT && !accepts) {
        for (int k = 0; k < 2; k++) {
            float *c = now + OUTPUT + k * COEFFICIENTS;
            swap(c[SLOT_STATE], c[SLOT_ARGUMENT]);
            swap(c[FIRST_SLOPE], c[LAST_SLOPE]);
        }
    }
    if (stage <= ACCEPT) {
        float *c = now + OUTPUT + COEFFICIENTS;
        for (int j = FIRST_SLOPE; j < MOST_SLOTS; j++) c[j] *= h;
        c[OF_X0] *= h;
        c[OF_EPS] *= h;
    }
    Word following = stage < ACCEPT ? min(stage + 1, 6u) : 1;
    u = u + NODES[following] * h;
    later[LABEL] = curve_at(p, u, CURVE_LABEL);
    later[INPUT_SCALE] = curve_at(p, u, CURVE_INPUT_SCALE);
    later[INPUT_SLOT] = (float)SLOT_ARGUMENT;
    return s[STATUS] == RUNNING;
}

ENTRY(sampler_rk45_f32, SamplerRk45, 256) {
    Word stage = stage_of(p.stage, STAGES);
    float running = 0.0f; // whole numbers: exact in any order
    for (Word image = threadIdx.x; image < p.n; image += 256) {
        if (control(p, stage, image)) running += 1.0f;
    }
    running = block_sum<256>(running);
    if (threadIdx.x == 0) p.running[0] = running;
}

// Columns of a blend's row, as in ops::sampler_blend::column.
enum { ACTIVE = 0, BLEND_SIGNAL = 1, BLEND_STD = 2, BLEND_DRAW = 3, BLEND_COLUMNS = 4 };

ENTRY(sampler_blend_f32, SamplerBlend, 256) {
    const float *row = p.table + stage_of(p.stage, p.stages) * BLEND_COLUMNS;
    Len e = group_start();
    int count = group_count(e, p.len);
    if (row[ACTIVE] == 0.0f || count == 0) return;
    Len image = blockIdx.y, at = image * p.len + e;
    float signal = row[BLEND_SIGNAL], std = row[BLEND_STD];
    Group z = {0, 0, 0, 0};
    if (std != 0.0f) z = normals(p.keys + image * 4, (Purpose)KNOWN, (Word)row[BLEND_DRAW], (Word)(e / GROUP));
    Group x = load(p.x + at, count), known = load(p.known + at, count), m = load(p.mask + at, count);
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        x[k] = m[k] * (signal * known[k] + std * z[k]) + (1.0f - m[k]) * x[k];
    }
    store(p.x + at, x, count);
}

ENTRY(sampler_estimate_forward_f32, SamplerEstimate, 256) {
    const SamplerStep &s = p.step;
    Len len = (Len)s.spatial * s.channels, e = group_start();
    int count = group_count(e, len);
    if (count == 0) return;
    Len image = blockIdx.y;
    const float *row = row_of(s, stage_of(s.stage, s.stages), 0);
    Group x = load(p.from + image * len + e, count);
    Group prediction = predict<float>(s, image, e, count, row[GUIDANCE]);
#pragma unroll
    for (int k = 0; k < GROUP; k++) x[k] = row[X0_STATE] * x[k] + row[X0_PREDICTION] * prediction[k];
    store(p.out + image * len + e, x, count, p.add);
}

// Grid: groups of a prediction along x, its images (both copies) along y.
ENTRY(sampler_estimate_backward_prediction_f32, SamplerEstimate, 256) {
    const SamplerStep &s = p.step;
    Len wide = (Len)s.spatial * s.prediction_channels, e = group_start();
    int count = group_count(e, wide);
    if (count == 0) return;
    Len image = blockIdx.y;
    const float *row = row_of(s, stage_of(s.stage, s.stages), 0);
    float share = !s.guided ? 1.0f : image < s.n ? row[GUIDANCE] : 1.0f - row[GUIDANCE];
    float scale = share * row[X0_PREDICTION];
    const float *from = p.from + image % s.n * s.spatial * s.channels;
    Group d;
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        Len at = (e + k) / s.prediction_channels;
        Word channel = (Word)((e + k) % s.prediction_channels);
        d[k] = k < count && channel < s.channels ? scale * from[at * s.channels + channel] : 0.0f;
    }
    store(p.out + image * wide + e, d, count, p.add);
}

ENTRY(sampler_estimate_backward_state_f32, SamplerEstimate, 256) {
    const SamplerStep &s = p.step;
    Len len = (Len)s.n * s.spatial * s.channels, e = group_start();
    int count = group_count(e, len);
    if (count == 0) return;
    float scale = row_of(s, stage_of(s.stage, s.stages), 0)[X0_STATE];
    Group d = load(p.from + e, count);
#pragma unroll
    for (int k = 0; k < GROUP; k++) d[k] = scale * d[k];
    store(p.out + e, d, count, p.add);
}

ENTRY(sampler_residual_f32, SamplerResidual, 256) {
    Len at = (Len)blockIdx.x * p.len;
    double sum = 0.0;
    for (Len i = (Len)threadIdx.x * GROUP; i < p.len; i += 256 * GROUP) {
        int count = group_count(i, p.len);
        Group z = load(p.z + at + i, count), y = load(p.y + at + i, count), r;
        Group m = {1, 1, 1, 1};
        if (p.mask) m = load(p.mask + at + i, count);
        for (int k = 0; k < GROUP; k++) {
            r[k] = p.mask ? (z[k] - y[k]) * m[k] : z[k] - y[k];
            if (k < count) sum += (double)(r[k] * r[k]);
        }
        store(p.direction + at + i, r, count);
    }
    float norm = (float)sqrt(block_sum<256>(sum));
    if (threadIdx.x == 0) p.norms[blockIdx.x] = norm;
    float scale = norm > 0.0f ? 1.0f / norm : 0.0f;
    // Each thread scales what it wrote itself.
    for (Len i = (Len)threadIdx.x * GROUP; i < p.len; i += 256 * GROUP) {
        int count = group_count(i, p.len);
        Group r = load(p.direction + at + i, count);
#pragma unroll
        for (int k = 0; k < GROUP; k++) r[k] *= scale;
        store(p.direction + at + i, r, count);
    }
}
