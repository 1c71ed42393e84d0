// One stage of any sampler in one pass; equations in src/ops/sampler_step.rs.
//
// slots: [n, len] f32, in place; prediction: [copies n, spatial, prediction_channels] and
// the network's input: [copies n, len], both f32 or both bf16. A thread takes the four elements of one counter; blocks over an image along x,
// images along y. Every term is a multiply and an add rounded by themselves, in the
// order of the equations, so the bits are the CPU's. A coefficient of 0 means that
// its operand is not read (by the whole grid, or a whole image, alike); what is read
// is read once.
//
// Quantile: a block an image; the k-th smallest |x_0| is found by its bits, eleven
// at a time (non-negative floats order as integers), with integer counts, so no
// order of threads shows.
#include "sampler_step.cuh"
#include "math.cuh"

// In place of the second target, as in ops::sampler_step::column.
constexpr float LEARNED = -2.0f, LEARNED_RANGE = -3.0f;

/// Multiplies z by the std that the network predicts in its second half.
template <typename T>
INLINE void scale_noise(const SamplerStep &p, Len image, Word e, int count, const float *row, Group &z) {
    const float *range = row + OUTPUT + COEFFICIENTS;
    Len len = (Len)p.spatial * p.prediction_channels;
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        if (k >= count) continue;
        Word i = e + k, at = i + (i / p.channels) * (p.prediction_channels - p.channels) + p.channels;
        float v = widen(((const T *)p.prediction)[image * len + at]);
        if (row[TARGET + 1] == LEARNED_RANGE) {
            float part = 0.5f * (v + 1.0f);
            z[k] = z[k] * exp_exact(0.5f * (part * range[1] + (1.0f - part) * range[0]));
        } else {
            z[k] = z[k] * sqrtf(v > 0.0f ? v : 0.0f);
        }
    }
}

INLINE void axpy(Group &sum, float c, const Group &v) {
    if (c == 0.0f) return;
#pragma unroll
    for (int k = 0; k < GROUP; k++) sum[k] = sum[k] + c * v[k];
}

/// The stage. The last block to have read it counts it up, where that is asked for.
INLINE Word take_stage(const SamplerStep &p) {
    __shared__ Word stage;
    if (threadIdx.x == 0) {
        stage = *(const volatile Word *)p.stage;
        if (p.advanced) {
            Word last = gridDim.x * gridDim.y - 1;
            __threadfence();
            if (atomicInc(p.arrived, last) == last) {
                volatile Word *advanced = p.advanced;
                *advanced = *advanced + 1;
            }
        }
    }
    __syncthreads();
    return min(stage, p.stages - 1);
}

template <typename T> INLINE void sampler_step(const SamplerStep &p) {
    // Of this stage and of the next. From shared memory they take no registers.
    __shared__ float row[COLUMNS], next_row[COLUMNS];
    Word stage = take_stage(p), image = blockIdx.y;
    if (threadIdx.x < COLUMNS) {
        row[threadIdx.x] = row_of(p, stage, image)[threadIdx.x];
        next_row[threadIdx.x] = row_of(p, min(stage + 1, p.stages - 1), image)[threadIdx.x];
    }
    __syncthreads();
    // An image has fewer than 2^32 elements.
    Word e = (Word)group_start();
    Len len = (Len)p.spatial * p.channels;
    int count = group_count(e, len);
    Len at = (Len)image * len + e;

    // Of an output that is not there no coefficient is looked at.
    bool writes[2] = {row[TARGET] >= 0.0f, row[TARGET + 1] >= 0.0f};
    auto coefficient = [&](int k, int i) { return writes[k] ? row[OUTPUT + k * COEFFICIENTS + i] : 0.0f; };
    auto uses = [&](int i) { return coefficient(0, i) != 0.0f || coefficient(1, i) != 0.0f; };
    Word seen = slot_index(p, row[INPUT_SLOT]);
    Group x = load(p.slots[seen] + at, count);
    Group sums[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    auto add = [&](int i, const Group &v) {
#pragma unroll
        for (int k = 0; k < 2; k++) axpy(sums[k], coefficient(k, i), v);
    };
    for (Word j = 0; j < p.slot_count; j++) {
        if (uses(j)) add(j, j == seen ? x : load(p.slots[j] + at, count));
    }
    if (uses(OF_X0) || uses(OF_EPS)) {
        Group prediction = predict<T>(p, image, e, count, row[GUIDANCE]), v;
        float clip = p.threshold ? p.threshold[image] : row[CLIP];
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            v[k] = clamp(row[X0_STATE] * x[k] + row[X0_PREDICTION] * prediction[k], -clip, clip);
        }
        if (p.threshold) {
#pragma unroll
            for (int k = 0; k < GROUP; k++) v[k] = v[k] / clip;
        }
        add(OF_X0, v);
#pragma unroll
        for (int k = 0; k < GROUP; k++) v[k] = row[EPS_STATE] * x[k] + row[EPS_PREDICTION] * prediction[k];
        add(OF_EPS, v);
    }
    if (uses(OF_NOISE)) {
        Group z = p.noise ? load(p.noise + at, count)
                          : normals(p.keys + image * 4, SAMPLE_STEP, (Word)row[DRAW], (Word)(e / GROUP));
        bool learns = p.prediction_channels >= 2 * p.channels;
        if (learns && row[TARGET + 1] <= LEARNED) scale_noise<T>(p, image, e, count, row, z);
        add(OF_NOISE, z);
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
        if (writes[k]) store(slot_of(p, row[TARGET + k]) + at, sums[k], count);
    }
    if (e == 0) {
        for (Word copy = 0; copy <= p.guided; copy++) {
            Len i = (Len)copy * p.n + image;
            if (p.label_is_index) ((Word *)p.label)[i] = (Word)next_row[LABEL];
            else ((float *)p.label)[i] = next_row[LABEL];
        }
    }
    if (p.input) {
        float scale = next_row[INPUT_SCALE];
        Word from = slot_index(p, next_row[INPUT_SLOT]);
        bool first = writes[0] && slot_index(p, row[TARGET]) == from;
        bool second = writes[1] && slot_index(p, row[TARGET + 1]) == from;
        Group v = second ? sums[1] : first ? sums[0] : load(p.slots[from] + at, count);
#pragma unroll
        for (int k = 0; k < GROUP; k++) v[k] = scale * v[k];
        for (Word copy = 0; copy <= p.guided; copy++) {
            store_four((T *)p.input + (Len)copy * p.n * len + at, v, count);
        }
    }
}

ENTRY(sampler_step_f32, SamplerStep, 256, 6) { sampler_step<float>(p); }
ENTRY(sampler_step_bf16, SamplerStep, 256, 6) { sampler_step<Bf16>(p); }

/// Calls f(bits of |x_0|) for this thread's elements of an image.
template <typename T, class F>
INLINE void each_magnitude(const SamplerStep &p, Word image, const float *row, F f) {
    Len len = (Len)p.spatial * p.channels;
    const float *x = slot_of(p, row[INPUT_SLOT]) + (Len)image * len;
    for (Len first = 0; first < len; first += 256 * GROUP) {
        Len e = first + threadIdx.x * GROUP;
        int count = group_count(e, len);
        Group v = load(x + e, count), prediction = predict<T>(p, image, e, count, row[GUIDANCE]);
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            if (k >= count) continue;
            float x0 = row[X0_STATE] * v[k] + row[X0_PREDICTION] * prediction[k];
            f(__float_as_uint(fabsf(x0)));
        }
    }
}

template <typename T> INLINE void sampler_quantile(const SamplerQuantile &p) {
    __shared__ Word counts[2048];
    __shared__ Word prefix, below, equal, smallest;
    const SamplerStep &s = p.step;
    Word image = blockIdx.x;
    const float *row = row_of(s, stage_of(s.stage, s.stages), image);
    Len len = (Len)s.spatial * s.channels;
    // As torch.quantile: rank and interpolation in f32.
    float rank = p.ratio * (float)(len - 1);
    Word k = (Word)rank;
    float weight = rank - floorf(rank);
    if (threadIdx.x == 0) {
        prefix = 0;
        below = 0;
        smallest = 0xffffffffu;
    }
    int known = 0;
    for (int pass = 0; pass < 3; pass++) {
        int bits = pass < 2 ? 11 : 10, shift = 32 - known - bits;
        for (int i = threadIdx.x; i < 2048; i += 256) counts[i] = 0;
        __syncthreads();
        Word high = prefix;
        each_magnitude<T>(s, image, row, [&](Word value) {
            if (known == 0 || value >> (32 - known) == high) {
                atomicAdd(&counts[(value >> shift) & ((1u << bits) - 1)], 1u);
            }
        });
        __syncthreads();
        if (threadIdx.x == 0) {
            Word digit = 0;
            while (below + counts[digit] <= k) below += counts[digit++];
            equal = counts[digit];
            prefix = prefix << bits | digit;
        }
        known += bits;
        __syncthreads();
    }
    Word low = prefix, not_above = below + equal;
    float quantile = __uint_as_float(low);
    if (weight != 0.0f && not_above <= k + 1) {
        // The next larger value.
        each_magnitude<T>(s, image, row, [&](Word value) {
            if (value > low) atomicMin(&smallest, value);
        });
        __syncthreads();
        float high = __uint_as_float(smallest), gap = high - quantile;
        quantile = weight < 0.5f ? quantile + weight * gap : high - gap * (1.0f - weight);
    }
    if (threadIdx.x == 0) {
        quantile = quantile > 1.0f ? quantile : 1.0f;
        p.threshold[image] = quantile < p.max ? quantile : p.max;
    }
}

ENTRY(sampler_quantile_f32, SamplerQuantile, 256) { sampler_quantile<float>(p); }
ENTRY(sampler_quantile_bf16, SamplerQuantile, 256) { sampler_quantile<Bf16>(p); }
