/* What a kernel is given: one struct a kernel, by value. The same text is compiled
 * by nvcc and read by bindgen, so it includes nothing and uses plain C.
 *
 * Order of fields: outputs, inputs, sizes, scalars. Pointers are device addresses;
 * shapes stand beside them. `add` is 0 to overwrite an output and 1 to add to it.
 * A pointer that may be null says so. What is void here is f32 or bf16, as the kernel's
 * name ends.
 */
#ifndef LANGEVIN_PARAMS_H
#define LANGEVIN_PARAMS_H

typedef unsigned char Byte;
typedef unsigned int Word;
typedef long long Len;

/* Nonlinearities, as in ops::pointwise::Activation. */
enum {
    ACTIVATION_NONE = 0,
    ACTIVATION_SILU = 1,
    ACTIVATION_GELU = 2,
    ACTIVATION_GELU_TANH = 3,
    ACTIVATION_RELU = 4,
    ACTIVATION_MISH = 5
};

/* pointwise.cu */

/** y = f(x); backward d_x = f'(x) d_y. */
struct Activate {
    void *y;         /* [len]; backward: d_x */
    const void *x;   /* [len] */
    const void *d_y; /* [len]; null forward */
    Len len;
    Word activation;
    Word add;
};

/** y = (a + b) scale. */
struct Add {
    void *y;       /* [len] */
    const void *a; /* [len] */
    const void *b; /* [len] */
    Len len;
    float scale;
    Word add;
};

/** y = x scale + offset. */
struct Scale {
    void *y;       /* [len] */
    const void *x; /* [len] */
    Len len;
    float scale;
    float offset;
    Word add;
};

/** y[n,e] = x[n,e] s[n,column], or divided by it. */
struct ScaleRows {
    void *y;        /* [n, len] */
    const void *x;  /* [n, len] */
    const float *s; /* [n, columns] */
    Len len;
    Word columns;
    Word column;
    Word divide;
    Word add;
};

/* cast.cu */

/** y = x in another type: f32 to bf16 or back. */
struct Cast {
    void *y;       /* [len] */
    const void *x; /* [len] */
    Len len;
    Word add;
};

/* conv2d.cu */

/** One axis of a gathering convolution. Result i = 0..count lies at first + step i of
 *  `length` and reads, at its k-th tap, source position scale i + shift + k shift_step of
 *  `source`. That tap is row or column tap + k tap_step of the kernel. */
struct ConvAxis {
    int count;
    int first;
    int step;
    int length;
    int scale;
    int shift;
    int shift_step;
    int taps;
    int tap;
    int tap_step;
    int source;
};

/* Residues of a position modulo a stride that one launch computes, along an axis. */
#define MOST_RESIDUES 2

/** y = gathered x times weight, plus what is added: forward and backward to the data.
 *  Source positions are those of x enlarged by 2^enlarge (nearest). */
struct ConvGather {
    void *y;                /* [images, length, length, groups * columns] */
    float *partial;         /* [lanes] of y, a block each; null: a block adds up all lanes */
    Word *counters;         /* one for each tile of results */
    const void *x;          /* [images, source, source, x_channels] */
    const void *x2;         /* as x with x2_channels, which follow x's; may be null */
    const void *weight;     /* [out, kernel_taps, in]: columns are out forward, in backward */
    const float *bias;      /* [groups * columns]; may be null */
    const void *per_image;  /* [images, groups * columns]; may be null */
    const void *residual;   /* as y; may be null */
    struct ConvAxis down[MOST_RESIDUES];  /* along the height, for each residue */
    struct ConvAxis along[MOST_RESIDUES]; /* along the width */
    int residues_down;
    int residues_along;
    int images;
    int x_channels;
    int x2_channels;
    int enlarge;
    int kernel_width;
    int kernel_taps;
    int groups;
    int reduced;     /* channels of a group that are summed over */
    int columns;     /* channels of a group that result */
    int lanes;       /* parts of the reduction, combined in order */
    int add;
};

/** d_weight = sum over pixels of d_y times gathered x; d_bias = sum of d_y. */
struct ConvOuter {
    void *d_weight;       /* [groups * c_out, kernel_taps, c_in] f32; null: skipped */
    float *d_bias;        /* [groups * c_out]; null: skipped */
    float *partial;       /* [lanes][d_weight, d_bias], rows of d_weight and d_bias filled up
                             to multiples of 4; null: lanes add in their turn */
    Word *counters;       /* two for each tile of results */
    const void *x;        /* [images, source, source, x_channels] */
    const void *x2;       /* as x with x2_channels, which follow x's; may be null */
    const void *d_y;      /* [images, count, count, groups * c_out] */
    struct ConvAxis down; /* as forward */
    struct ConvAxis along;
    int images;
    int pixels;
    int x_channels;
    int x2_channels;
    int enlarge;
    int kernel_width;
    int kernel_taps;
    int groups;
    int c_in;             /* of a group */
    int c_out;            /* of a group */
    int tiles;
    int lanes;
    int add;
    int add_bias;
    int few_offset;       /* bytes from the end of the tiles to pixels of d_y */
    int few_len;          /* elements that a tile's pixels of few channels take */
};

/* noising.cu, loss.cu */

/** Clean images, given or picked; see ops::noising::Pick. */
struct Images {
    const void *set;   /* [n, len] float; with picks [rows, len], bytes if levels > 0 */
    const Word *picks; /* [n, 2] which, mirrored; null: the images are given */
    Word rows;
    Word width;
    Word channels;
    Word levels;
};

/** x_t = signal x_0 + std eps. */
struct Noising {
    void *x_t;                 /* [n, len] */
    float *x0;                 /* [n, len]; may be null */
    struct Images images;
    const float *coefficients; /* [n, 8] */
    const Word *keys;          /* [n, 4] */
    Len len;
    Word add;
};

/** loss[n], or d_prediction [n, len], against a x_0 + b eps. */
struct Loss {
    void *out;                 /* [n] f32; backward: [n, len] as the prediction */
    const void *prediction;    /* [n, len] */
    struct Images images;      /* x_0 */
    const float *coefficients; /* [n, 8] */
    const Word *keys;          /* [n, 4]; null: no eps */
    Len len;
    float scale;
    Word add;
};

/* optimizer.cu */

/** Most ranges of the arenas that one launch takes. */
#define MOST_RANGES 16

/** Runs of trainable elements; range i has chunks first_chunk[i] .. first_chunk[i + 1]. */
struct Ranges {
    Len start[MOST_RANGES];
    Len len[MOST_RANGES];
    Word first_chunk[MOST_RANGES + 1];
    Word count;
};

/** Sums of squares of the chunks. */
struct SquareSums {
    double *sums;           /* [chunks] */
    const float *gradients; /* whole arena */
    struct Ranges ranges;
};

/** norm = sqrt(sum of the sums). */
struct GlobalNorm {
    float *norm;        /* [1] */
    const double *sums; /* [chunks] */
    Word chunks;
};

/** AdamW and the average; see ops::optimizer::AdamW. */
struct AdamW {
    float *parameters;      /* whole arenas */
    float *first_moments;
    float *second_moments;
    float *average;
    void *half;             /* the parameters in bf16; may be null */
    const float *gradients;
    const float *norm;      /* [1] */
    const float *control;   /* [4] */
    struct Ranges ranges;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
    double clip; /* infinite for none */
};

/* broadcast.cu */

/** y[n,s,c] = x[n,s,c] + e[n,c], or times it; sum y[n,c] = sum_s x[n,s,c] factor[n,s,c]. */
struct PerImage {
    void *y;            /* [n, spatial, channels]; sum: [n, channels] */
    const void *x;      /* [n, spatial, channels] */
    const void *e;      /* [n, channels]; not read by the sum */
    const void *factor; /* as x, read by the sum; may be null */
    Len spatial;
    Word channels;
    Word multiply;
    Word add;
};

/* concat.cu */

/** y = [a, b] along channels. */
struct Concat {
    void *y;       /* [rows, c_a + c_b] */
    const void *a; /* [rows, c_a] */
    const void *b; /* [rows, c_b] */
    Len rows;
    Word c_a;
    Word c_b;
    Word add;
};

/** d = channels from .. from + width of d_y. */
struct ConcatBackward {
    void *d;         /* [rows, width] */
    const void *d_y; /* [rows, channels] */
    Len rows;
    Word width;
    Word from;
    Word channels;
    Word add;
};

/* dropout.cu */

/** y = x scale where the word is at least the threshold, else 0. */
struct Dropout {
    void *y;          /* [n, len] */
    const void *x;    /* [n, len] */
    const Word *keys; /* [n, 4] */
    Len len;
    Word threshold;
    Word layer;
    float scale;
    Word add;
};

/* embedding.cu */

/** [sin, cos] of phases, swapped with flip. */
struct Waves {
    void *y;        /* [n, dim] */
    const float *t; /* [n] */
    const float *w; /* [dim / 2]; null for the sinusoidal embedding */
    double step;    /* sinusoidal: -ln(max_period) / (half - freq_shift) */
    Word dim;
    Word flip;
    Word log; /* Fourier: of ln t */
    Word add;
};

/** Rows of a table; backward: sums of the rows' gradients. */
struct Lookup {
    void *y;            /* [n, dim]; backward: d_table [rows, dim] */
    Word *bad;          /* [1]: 1 + an image whose index is outside */
    const void *table;  /* [rows, dim]; backward: d_y [n, dim] */
    const Word *index;  /* [n] */
    Word n;
    Word rows;
    Word dim;
    Word add;
};

/* resample.cu */

enum { RESAMPLE_NEAREST = 0, RESAMPLE_AVERAGE = 1, RESAMPLE_FIR = 2 };

/** Gathers y from x; backward: d_x from d_y, with the sizes as the kernel sees them. */
struct Resample {
    void *y;       /* [n, oh, ow, c] */
    const void *x; /* [n, h, w, c] */
    Word h;
    Word w;
    Word oh;
    Word ow;
    Word c;
    Word method;
    Word backward;
    Word factor;
    Word up;
    Word down;
    int pad; /* before */
    Word reflect;
    float weights[4];
    Word add;
};

/* norm_group.cu, norm_layer.cu, norm_group_half.cu, norm_layer_half.cu */

/** y = f(xhat gain + bias); see ops::norm::Norm. Of group norms x may lie in two tensors,
 * side by side in channels. */
struct Norm {
    void *y;                 /* [n, spatial, channels] */
    float *mean;             /* [n, groups], layer: [n, spatial] */
    float *rstd;             /* as mean */
    const void *x;           /* [n, spatial, channels - x2_channels] */
    const void *x2;          /* [n, spatial, x2_channels]; may be null */
    const float *gamma;      /* [channels]; may be null */
    const float *beta;       /* [channels]; may be null */
    const void *scale_shift; /* [n, 2 channels], scale first; may be null */
    Len spatial;
    int n;
    int channels;
    int x2_channels;
    int groups; /* this and what follows: not read by layer norms */
    int slice;  /* channels of a block: whole groups */
    int kept;   /* positions of a slice in shared memory; small images: images of a block */
    float eps;
    Word activation;
    Word add;
};

/** Gradients of all operands. Each may be null. */
struct NormBackward {
    void *d_x;               /* as x */
    void *d_x2;              /* as x2 */
    float *d_gamma;          /* [channels] */
    float *d_beta;           /* [channels] */
    void *d_scale_shift;     /* [n, 2 channels] */
    float *sums;             /* see the kernels; null for d_x and d_x2 alone */
    Word *counters;          /* zeros, and left so */
    const void *x;           /* [n, spatial, channels - x2_channels] */
    const void *x2;          /* [n, spatial, x2_channels]; may be null */
    const float *gamma;      /* [channels]; may be null */
    const float *beta;       /* [channels]; may be null */
    const void *scale_shift; /* [n, 2 channels]; may be null */
    const float *mean;       /* [n, groups], layer: [n, spatial] */
    const float *rstd;       /* as mean */
    const void *d_y;         /* [n, spatial, channels] */
    const void *joined;      /* [n, spatial, channels], added to d_x and d_x2; may be null */
    Len spatial;
    int n;
    int channels;
    int x2_channels;
    int groups; /* not read by layer norms, as slice and kept */
    int slice;  /* channels of a block: whole groups */
    int kept;   /* positions of two slices in shared memory; small images: images of a block */
    Word activation;
    Word add;
    Word add2;
    Word add_gamma;
    Word add_beta;
    Word add_scale_shift;
};

/* attention.cu, attention_tensor*.cu */

/** o = softmax(scale q k^T) v. */
struct Attention {
    void *o;        /* [n, s_q, heads, head_dim] */
    float *lse;     /* [n, heads, s_q] */
    const void *q;  /* [n, s_q, heads, head_dim] */
    const void *k;  /* [n, s_kv, heads, head_dim] */
    const void *v;  /* [n, s_kv, heads, head_dim] */
    Len s_q;
    Len s_kv;
    int heads;
    int head_dim;
    Word pitch; /* bytes from token to token; read by tensor cores only */
    float scale;
};

/** d_q, d_k, d_v by two passes, and delta before them. */
struct AttentionBackward {
    void *d_q;        /* [n, s_q, heads, head_dim] */
    void *d_k;        /* [n, s_kv, heads, head_dim]; may be null */
    void *d_v;        /* [n, s_kv, heads, head_dim]; may be null */
    float *delta;     /* [n, heads, s_q]; tensor cores: [n, heads, pairs of queries, 8] */
    const void *q;    /* [n, s_q, heads, head_dim] */
    const void *k;    /* [n, s_kv, heads, head_dim] */
    const void *v;    /* [n, s_kv, heads, head_dim] */
    const void *o;    /* [n, s_q, heads, head_dim] */
    const float *lse; /* [n, heads, s_q] */
    const void *d_o;  /* [n, s_q, heads, head_dim] */
    Len s_q;
    Len s_kv;
    int heads;
    int head_dim;
    Word pitch; /* bytes from token to token; read by tensor cores only */
    float scale;
    Word add_q;
    Word add_k;
    Word add_v;
};

/* sampler_step.cu */

/** One stage; see ops::sampler_step::SamplerStep. */
struct SamplerStep {
    float *slots[7];         /* [n, spatial, channels] each, in place */
    void *label;             /* [copies n] float, or Word */
    void *input;             /* [copies n, spatial, channels], as the prediction; may be null */
    const void *prediction;  /* [copies n, spatial, prediction_channels] */
    const float *table;      /* [stages, rows, 32] */
    const Word *stage;       /* [1] */
    Word *advanced;          /* [1], the stage to count up; null: none */
    Word *arrived;           /* [1], blocks; 0 between launches */
    const Word *keys;        /* [n, 4] */
    const float *noise;      /* [n, spatial, channels]; null: drawn */
    const float *threshold;  /* [n]; may be null */
    Word n;
    Word spatial;
    Word channels;
    Word prediction_channels;
    Word slot_count;
    Word stages;
    Word per_image;
    Word guided;
    Word label_is_index;
};

/** Threshold of dynamic thresholding. */
struct SamplerQuantile {
    float *threshold; /* [n] */
    struct SamplerStep step;
    float ratio;
    float max;
};

/* sampler_control.cu */

/** |eps| and |z| of every image at a Langevin stage, else 0. */
struct SamplerNorms {
    float *norms;       /* [n, 2] */
    const float *rules; /* [stages] */
    struct SamplerStep step;
};

/** Rows of every image for this stage and the next. */
struct SamplerLangevin {
    float *rows;        /* [2, n, 32] */
    const float *table; /* [stages, 1, 32] */
    const Word *stage;  /* [1] */
    const float *rules; /* [stages] */
    const float *norms; /* [n, 2] */
    Word n;
    Word stages;
    Word batch_norm;
};

/** Error norm of an adaptive step, before the stage that accepts. */
struct SamplerError {
    float *error;      /* [n]; kept at other stages */
    const Word *stage; /* [1] */
    const float *y;    /* [n, len] */
    const float *next; /* [n, len] */
    const float *e;    /* [n, len] */
    Len len;
    Word accept; /* the stage */
    float atol;
    float rtol;
};

/** Control of every image's adaptive step, and its rows. */
struct SamplerRk45 {
    float *rows;        /* [2, n, 32] */
    float *state;       /* [n, 8], in place */
    float *running;     /* [1] */
    const float *table; /* [10, 1, 32] */
    const Word *stage;  /* [1] */
    const float *curve; /* [nodes, 5] */
    const float *error; /* [n] */
    Word n;
    Word nodes;
    float first;
    float spacing;
    float end;
    float most;
};

/** x = m (signal known + std z) + (1 - m) x at the stages that say so. */
struct SamplerBlend {
    float *x;           /* [n, len], in place */
    const float *table; /* [stages, 4] */
    const Word *stage;  /* [1] */
    const Word *keys;   /* [n, 4] */
    const float *known; /* [n, len] */
    const float *mask;  /* [n, len] */
    Len len;
    Word stages;
};

/** x_0 not limited, from prediction and state; backward: their gradients. */
struct SamplerEstimate {
    float *out;        /* [n, spatial, channels]; backward: d_prediction or d_state */
    const float *from; /* the state; backward: d_x_0 */
    struct SamplerStep step;
    Word add;
};

/** direction = m (z - y) / |m (z - y)|. */
struct SamplerResidual {
    float *direction;  /* [n, len] */
    float *norms;      /* [n] */
    const float *z;    /* [n, len] */
    const float *y;    /* [n, len] */
    const float *mask; /* [n, len]; may be null */
    Len len;
};

/* linear.cu, linear_group.cu */

/** Most layers of a group. */
#define MOST_MEMBERS 24

/** One layer of a group. */
struct LinearMember {
    const void *weight; /* [columns, c_in]; not read by the weight gradient */
    const float *bias;  /* [columns], forward; may be null */
    void *y;            /* [rows, columns], forward */
    const void *d_y;    /* [rows, columns], backward */
    float *d_weight;    /* [columns, c_in]; may be null */
    float *d_bias;      /* [columns]; may be null */
    Word columns;
    Word first_block; /* of those along the members' columns */
    Word lanes;       /* of the weight gradient; read by linear_group.cu */
    Word add;         /* to d_weight */
    Word add_bias;
};

/** Linear layers over the same rows; see ops::linear::LinearGroup. What follows a layer (of
 *  one member) is read by linear.cu. */
struct LinearGroup {
    const void *x;        /* [rows, c_in] */
    void *d_x;            /* [rows, c_in], backward data */
    const void *per_row;  /* [rows, columns], added to the result; may be null */
    const void *gate;     /* [rows / gate_rows, columns], its factors; may be null */
    const void *residual; /* [rows, columns], added last; may be null */
    Word rows;
    Word c_in;
    Word count;
    Word gate_rows;
    Word activation;
    Word add; /* to d_x */
    struct LinearMember members[MOST_MEMBERS];
};

/* axis_map.cu */

/** y[o,j,i] = sum_k m[j,k] x[o,k,i], zeros of m left out. */
struct AxisMap {
    float *y;            /* [outer, to, inner] */
    const float *x;      /* [outer, from, inner] */
    const float *matrix; /* [to, from], or [from, to] when transposed */
    Len outer;
    Word from;
    Word to;
    Word inner;
    Word transposed;
    Word add;
};

/* pooling.cu */

/** Largest or mean value of windows. */
struct Pooling {
    float *y;         /* [n, oh, ow, c]; backward: d_x [n, h, w, c] */
    const float *x;   /* [n, h, w, c] */
    const float *d_y; /* [n, oh, ow, c]; null forward */
    int h;
    int w;
    int oh;
    int ow;
    int c;
    int kernel_h;
    int kernel_w;
    int stride;
    int padding;
    Word mean; /* or largest */
    Word add;
};

/* variational.cu */

/** loss[n], or its gradient, of a term of the variational bound. */
struct Variational {
    float *out;                /* [n]; backward: as the prediction */
    const float *prediction;   /* [n, len], learned: [n, 2 len] */
    const float *x0;           /* [n, len] */
    const float *coefficients; /* [n, 12] */
    const Word *keys;          /* [n, 4] */
    Len len;
    int channels;
    Word learned;
    Word hold_mean;
    float half_bin;
    float scale;
    Word add;
};

/* empirical.cu */

/** The optimal denoiser of a data set. */
struct Empirical {
    float *out;          /* [n, len]: y; backward: d_x */
    float *log_sum;      /* [n, 2]; backward: read */
    double *statistics;  /* [chunks, n, 2] */
    float *sums;         /* [chunks, n, len] */
    const float *x;      /* [n, len] */
    const float *data;   /* [m, len] */
    const float *std;    /* [n] */
    const float *signal; /* [n]; may be null */
    const float *y;      /* [n, len]; null forward */
    const float *d_y;    /* [n, len]; null forward */
    Len n;
    Len m;
    Len len;
    int chunks;
    Word add;
};

/* check.cu */

/** Sets *found to 1 where a value is NaN or infinite. */
struct Check {
    Word *found;   /* [1] */
    const void *x; /* [len] */
    Len len;
};

#endif
