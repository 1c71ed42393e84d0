// What norms of both types share: packs of channels, tensors that are two side by side,
// and the way from sums of every image and channel to gradients of vectors.
#pragma once
#include "half.cuh"
#include "last_block.cuh"

/// V consecutive elements: one access, or two, of 16 bytes where V is not 1.
template <int V> INLINE Pack<V> read(const float *p) {
    Pack<V> x;
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int k = 0; k < V; k += 4) {
            float4 f = *(const float4 *)(p + k);
            x[k] = f.x, x[k + 1] = f.y, x[k + 2] = f.z, x[k + 3] = f.w;
        }
    } else {
        x[0] = *p;
    }
    return x;
}

template <int V> INLINE Pack<V> read(const Bf16 *p) {
    Pack<V> x;
    if constexpr (V == 8) {
        uint4 bits = *(const uint4 *)p;
        const unsigned word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int k = 0; k < V; k++)
            x[k] = __uint_as_float(k % 2 ? word[k / 2] & 0xffff0000u : word[k / 2] << 16);
    } else {
        x[0] = __bfloat162float(*p);
    }
    return x;
}

template <int V> INLINE void write(float *p, Pack<V> x, bool add = false) {
    if (add) {
        Pack<V> before = read<V>((const float *)p);
#pragma unroll
        for (int k = 0; k < V; k++) x[k] = before[k] + x[k];
    }
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int k = 0; k < V; k += 4) *(float4 *)(p + k) = make_float4(x[k], x[k + 1], x[k + 2], x[k + 3]);
    } else {
        *p = x[0];
    }
}

template <int V> INLINE void write(Bf16 *p, Pack<V> x, bool add = false) {
    if (add) {
        Pack<V> before = read<V>((const Bf16 *)p);
#pragma unroll
        for (int k = 0; k < V; k++) x[k] = before[k] + x[k];
    }
    if constexpr (V == 8) {
        unsigned word[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * k], x[2 * k + 1]);
            word[k] = *(const unsigned *)&pair;
        }
        *(uint4 *)p = make_uint4(word[0], word[1], word[2], word[3]);
    } else {
        *p = __float2bfloat16_rn(x[0]);
    }
}

/// Four floats of shared memory, read each time rather than held in registers.
INLINE Pack<4> shared_quad(const void *p) {
    Pack<4> x;
    asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
                 : "r"((unsigned)__cvta_generic_to_shared(p))
                 : "memory");
    return x;
}

/// Writes four floats to shared memory at once.
INLINE void write_shared_quad(void *p, float a, float b, float c, float d) {
    asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"((unsigned)__cvta_generic_to_shared(p)), "f"(a), "f"(b),
                 "f"(c), "f"(d)
                 : "memory");
}

/// A tensor that may be two side by side in channels, at an image's channel c.
template <typename T> struct Source {
    T *first;
    int pitch; // bytes from position to position

    INLINE Source(const void *x, const void *x2, int channels, int x2_channels, Len image, Len spatial, int c) {
        bool second = c >= channels - x2_channels;
        int here = second ? x2_channels : channels - x2_channels;
        first = (T *)(second ? x2 : x) + (second ? c - (channels - x2_channels) : c) + image * spatial * here;
        pitch = here * (int)sizeof(T);
    }

    INLINE T *at(int s) const { return (T *)((unsigned long long)first + (Len)s * pitch); }
};

/// The element of `other` that is where `at` points to in `tensor`, of the same shape.
template <typename T> INLINE const T *same(const T *at, const void *tensor, const void *other) {
    return (const T *)other + (at - (const T *)tensor);
}

/// What P and Q of an image's channels from c on are to the gradients of its vectors:
/// writes those of scale_shift, and makes of P and Q what beta and gamma get.
template <typename T, int V, typename Real>
INLINE void image_vectors(const NormBackward &p, Len image, int c, Real (&of_p)[V], Real (&of_q)[V]) {
    Len at = image * 2 * p.channels + c;
    if (p.d_scale_shift) {
        Pack<V> scale, shift;
#pragma unroll
        for (int k = 0; k < V; k++) {
            float gamma = p.gamma ? p.gamma[c + k] : 1.0f, beta = p.beta ? p.beta[c + k] : 0.0f;
            scale[k] = fmaf(gamma, (float)of_q[k], beta * (float)of_p[k]);
            shift[k] = (float)of_p[k];
        }
        write<V>((T *)p.d_scale_shift + at, scale, p.add_scale_shift);
        write<V>((T *)p.d_scale_shift + at + p.channels, shift, p.add_scale_shift);
    }
    if (p.scale_shift) {
        Pack<V> scale = read<V>((const T *)p.scale_shift + at);
#pragma unroll
        for (int k = 0; k < V; k++) {
            of_p[k] *= (Real)(1.0f + scale[k]);
            of_q[k] *= (Real)(1.0f + scale[k]);
        }
    }
}

/// Adds sums [2, channels], P before Q, of the channels from c on.
template <int V, typename Real>
INLINE void add_sums(const NormBackward &p, const float *sums, int c, Real (&of_p)[V], Real (&of_q)[V]) {
    Pack<V> more_p = read<V>(sums + c), more_q = read<V>(sums + p.channels + c);
#pragma unroll
    for (int k = 0; k < V; k++) {
        of_p[k] += (Real)more_p[k];
        of_q[k] += (Real)more_q[k];
    }
}

/// Leaves such sums.
template <int V, typename Real>
INLINE void leave_sums(const NormBackward &p, float *sums, int c, const Real (&of_p)[V], const Real (&of_q)[V]) {
    Pack<V> narrow_p, narrow_q;
#pragma unroll
    for (int k = 0; k < V; k++) {
        narrow_p[k] = (float)of_p[k];
        narrow_q[k] = (float)of_q[k];
    }
    write<V>(sums + c, narrow_p);
    write<V>(sums + p.channels + c, narrow_q);
}

/// Writes the gradients of beta and gamma of the channels from c on.
template <int V, typename Real>
INLINE void put_vectors(const NormBackward &p, int c, const Real (&of_p)[V], const Real (&of_q)[V]) {
    Pack<V> beta, gamma;
#pragma unroll
    for (int k = 0; k < V; k++) {
        beta[k] = (float)of_p[k];
        gamma[k] = (float)of_q[k];
    }
    if (p.d_beta) write<V>(p.d_beta + c, beta, p.add_beta);
    if (p.d_gamma) write<V>(p.d_gamma + c, gamma, p.add_gamma);
}

/// Images that a layer norm's last blocks add up at once.
constexpr Word CLASSES = 16;

/// The end of a layer norm's backward pass, whose blocks, of a part of an image each, have
/// left P and Q of it in `sums` [n, parts, 2, channels]. The last block of an image adds up
/// its parts. With gradients of gamma and beta images that are CLASSES apart are together:
/// their last block leaves what it makes of them behind all the parts, [CLASSES, 2,
/// channels], and the last of those blocks adds that up.
template <typename T, int V, typename Real> INLINE void layer_vectors(const NormBackward &p) {
    if (!p.sums) return;
    Word parts = gridDim.x, images = gridDim.y;
    bool of_weights = p.d_gamma || p.d_beta;
    Word classes = of_weights ? min(images, CLASSES) : images, mine = blockIdx.y % classes;
    Word together = (images - mine + classes - 1) / classes;
    if (!is_last_block(p.counters + mine, together * parts)) return;
    Len row = 2 * p.channels;
    float *of_classes = p.sums + (Len)images * parts * row;
    for (int c = threadIdx.x * V; c < p.channels; c += blockDim.x * V) {
        Real class_p[V] = {}, class_q[V] = {};
        for (Word image = mine; image < images; image += classes) {
            Real of_p[V] = {}, of_q[V] = {};
            const float *of_image = p.sums + (Len)image * parts * row;
            for (Word part = 0; part < parts; part++) add_sums<V>(p, of_image + part * row, c, of_p, of_q);
            image_vectors<T, V>(p, image, c, of_p, of_q);
#pragma unroll
            for (int k = 0; k < V; k++) {
                class_p[k] += of_p[k];
                class_q[k] += of_q[k];
            }
        }
        if (of_weights) leave_sums<V>(p, of_classes + mine * row, c, class_p, class_q);
    }
    if (!of_weights || !is_last_block(p.counters + CLASSES, classes)) return;
    for (int c = threadIdx.x * V; c < p.channels; c += blockDim.x * V) {
        Real of_p[V] = {}, of_q[V] = {};
        for (Word i = 0; i < classes; i++) add_sums<V>(p, of_classes + i * row, c, of_p, of_q);
        put_vectors<V>(p, c, of_p, of_q);
    }
}
