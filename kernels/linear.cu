// Linear layers in tiles: several over the same rows in one launch a pass, and what follows
// a layer done as it stores its result.
//
//   forward         y_i = residual + gate (f(x w_i^T + bias_i + per_row))
//   backward data   d_x = sum over i of d_y_i w_i, in one chain through the members
//   backward weight d_w_i = d_y_i^T x, d_bias_i = column sums of d_y_i
//
// x: [rows, c_in], y_i: [rows, columns_i], w_i: [columns_i, c_in]; bf16, or f32 rounded to
// tf32, or (forward) f32; biases and gradients of weights f32. c_in and columns fill whole
// chunks of 16 bytes. A block computes one tile of one member; blockIdx.y counts through the
// members' columns (the weight's rows). Two stages of cp.async; accumulation is f32 in
// one chain along the reduction, so results have the bits of the layers' own launches
// (matmul.cuh), but for d_x of several members, which those round in between, and gradients
// of weights, whose rows those may split.
#include "gather.cuh"
#include "math.cuh"

/// Rows of a [rows][length] matrix, an operand whose reduction lies along them.
template <typename T, int ROWS, int THREADS, int SWIZZLE> struct MatrixRows {
    static constexpr int STEP = THREADS / 8, PASSES = ROWS / STEP;
    static_assert(ROWS % STEP == 0 && PASSES <= 32, "whole passes");
    const char *from;
    int pitch;
    unsigned inside, slot;

    INLINE void start(const void *matrix, int first, int rows, int length) {
        int row = first + threadIdx.x / 8;
        slot = row_slot<THREADS, SWIZZLE>(0, 0);
        keep(slot);
        pitch = length * (int)sizeof(T);
        from = (const char *)matrix + (Len)row * pitch + threadIdx.x % 8 * 16;
        inside = 0;
#pragma unroll
        for (int i = 0; i < PASSES; i++) inside |= row + i * STEP < rows ? 1u << i : 0u;
    }

    /// The next tile, of which `terms` are left.
    INLINE void fetch(unsigned tile, int terms) {
        unsigned now = (int)threadIdx.x % 8 * CHUNK<T> < terms ? inside : 0u;
#pragma unroll
        for (int i = 0; i < PASSES; i++)
            copy16(next_slot<THREADS, SWIZZLE>(tile + slot, i), from + (Len)(i * STEP) * pitch, now & 1u << i);
        from += ROW_BYTES;
    }
};

/// Columns of a [length][columns] matrix, whose reduction lies across its rows.
template <typename T, int COLUMNS, int THREADS, Order ORDER> struct MatrixColumns {
    static constexpr int CHUNKS = COLUMNS / CHUNK<T>, STEP = THREADS / CHUNKS;
    static_assert(THREADS % CHUNKS == 0 && DEPTH<T> % STEP == 0, "whole passes");
    const char *from;
    int pitch;
    unsigned slot;
    bool exists;

    INLINE void start(const void *matrix, int first, int columns) {
        int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        slot = row * (COLUMNS * (int)sizeof(T)) + place<ORDER, CHUNKS>(row, chunk) * 16;
        keep(slot);
        pitch = columns * (int)sizeof(T);
        from = (const char *)matrix + (Len)row * pitch + (first + chunk * CHUNK<T>) * (int)sizeof(T);
        exists = first + chunk * CHUNK<T> < columns;
    }

    INLINE void fetch(unsigned tile, int terms) {
        int left = exists ? terms - (int)threadIdx.x / CHUNKS : 0;
#pragma unroll
        for (int i = 0; i < DEPTH<T> / STEP; i++) {
            // Permutations are linear: that of a sum without carries is the sum of theirs.
            unsigned at = (tile + slot ^ place<ORDER, CHUNKS>(i * STEP, 0) * 16) + i * STEP * (COLUMNS * (int)sizeof(T));
            copy16(at, from + (Len)(i * STEP) * pitch, i * STEP < left);
        }
        from += (Len)DEPTH<T> * pitch;
    }
};

template <class Tile> using LeftRows = MatrixRows<typename Tile::T, Tile::BM, Tile::THREADS, Tile::SWIZZLE_A>;
template <class Tile> using RightRows = MatrixRows<typename Tile::T, Tile::BN, Tile::THREADS, Tile::SWIZZLE_B>;
template <class Tile> using LeftColumns = MatrixColumns<typename Tile::T, Tile::BM, Tile::THREADS, Tile::ORDER>;
template <class Tile> using RightColumns = MatrixColumns<typename Tile::T, Tile::BN, Tile::THREADS, Tile::ORDER>;

/// Adds up products of `count` reductions, one behind the other: `begin(i)` turns both operands
/// to the i-th and returns its length. A tile is on its way while the one before is multiplied.
template <bool A_ROWS, bool B_ROWS, class Tile, class A, class B, class Begin>
INLINE void reduce(Tile &tile, unsigned char *shared, A &a, B &b, int count, bool with_bias, Begin begin) {
    constexpr int STEP = DEPTH<typename Tile::T>;
    auto at = Tile::template start<A_ROWS, B_ROWS>();
    int stage = 0, left = begin(0), terms = 0;
    auto fetch = [&](int stage) {
        unsigned to = shared_address(shared) + stage * STAGE_BYTES<Tile>;
        a.fetch(to, left);
        b.fetch(to + Tile::BM * ROW_BYTES, left);
        commit_copies();
    };
    auto multiply = [&] {
        tile.template multiply<A_ROWS, B_ROWS>(at, shared + stage * STAGE_BYTES<Tile>, terms, with_bias);
    };
    auto step = [&] {
        terms = min(left, STEP);
        left -= STEP;
    };
    fetch(stage);
    step();
#pragma unroll 1
    for (int i = 1;; i++) {
#pragma unroll 1
        while (left > 0) {
            await_copies<0>();
            __syncthreads();
            fetch(stage ^ 1);
            multiply();
            stage ^= 1;
            step();
        }
        if (i >= count) break;
        left = begin(i);
    }
    await_copies<0>();
    __syncthreads();
    multiply();
}

/// The member that a block belongs to, blocks being numbered through all members.
INLINE const LinearMember &member_of(const LinearGroup &p, Word block) {
    Word i = 0;
    while (i + 1 < p.count && block >= p.members[i + 1].first_block) i++;
    return p.members[i];
}

template <class Tile> INLINE void linear_forward(const LinearGroup &p) {
    using T = typename Tile::T;
    extern __shared__ __align__(128) unsigned char shared[];
    const LinearMember &m = member_of(p, blockIdx.y);
    int first_row = blockIdx.x * Tile::BM, first = (blockIdx.y - m.first_block) * Tile::BN;
    int width = (int)m.columns, rows = (int)p.rows - first_row, columns = width - first;
    Tile tile;
    tile.clear();
    LeftRows<Tile> a;
    RightRows<Tile> b;
    reduce<true, true>(tile, shared, a, b, 1, false, [&](int) {
        a.start(p.x, first_row, (int)p.rows, (int)p.c_in);
        b.start(m.weight, first, width, (int)p.c_in);
        return (int)p.c_in;
    });
    // All results that a thread is given lie in the same columns: it reads their bias once.
    constexpr int ALONG = Tile::BN / CHUNK<T>;
    static_assert(Tile::THREADS % ALONG == 0, "whole rows");
    int own = threadIdx.x % ALONG * CHUNK<T>;
    Values<T> bias;
    bias.clear();
    if (own < columns) bias.add(m.bias ? m.bias + first + own : nullptr, min(columns - own, CHUNK<T>));
    give<Tile, T>(tile, (float *)shared, rows, columns, [&](int row, int column, Values<T> &values) {
        int count = min(columns - column, CHUNK<T>), channel = first + column;
        Len at = (Len)(first_row + row) * width + channel;
#pragma unroll
        for (int k = 0; k < CHUNK<T>; k++) values.v[k] = values.v[k] + bias.v[k];
        if (p.per_row) values.add((const T *)p.per_row + at, count);
        if (p.activation != ACTIVATION_NONE) {
#pragma unroll
            for (int k = 0; k < CHUNK<T>; k++) values.v[k] = activation_value(p.activation, values.v[k]);
        }
        if (p.gate) {
            Values<T> gate;
            gate.clear();
            gate.add((const T *)p.gate + (Len)((first_row + row) / p.gate_rows) * width + channel, count);
#pragma unroll
            for (int k = 0; k < CHUNK<T>; k++) values.v[k] = values.v[k] * gate.v[k];
        }
        if (p.residual) values.add((const T *)p.residual + at, count);
        values.write((T *)m.y + at, count, false);
    });
}

template <class Tile> INLINE void linear_backward_data(const LinearGroup &p) {
    using T = typename Tile::T;
    extern __shared__ __align__(128) unsigned char shared[];
    int first_row = blockIdx.x * Tile::BM, first = blockIdx.y * Tile::BN, c_in = (int)p.c_in;
    Tile tile;
    tile.clear();
    LeftRows<Tile> a;
    RightColumns<Tile> b;
    reduce<true, false>(tile, shared, a, b, (int)p.count, false, [&](int i) {
        const LinearMember &m = p.members[i];
        a.start(m.d_y, first_row, (int)p.rows, (int)m.columns);
        b.start(m.weight, first, c_in);
        return (int)m.columns;
    });
    give<Tile, T>(tile, (float *)shared, (int)p.rows - first_row, c_in - first, [&](int row, int column, Values<T> &values) {
        Len at = (Len)(first_row + row) * c_in + first + column;
        values.write((T *)p.d_x + at, min(c_in - first - column, CHUNK<T>), p.add);
    });
}

template <class Tile> INLINE void linear_backward_weight(const LinearGroup &p) {
    extern __shared__ __align__(128) unsigned char shared[];
    const LinearMember &m = member_of(p, blockIdx.y);
    int first_row = (blockIdx.y - m.first_block) * Tile::BM, first = blockIdx.x * Tile::BN;
    int outputs = (int)m.columns, c_in = (int)p.c_in;
    bool with_bias = m.d_bias && blockIdx.x == 0;
    Tile tile;
    tile.clear();
    LeftColumns<Tile> a;
    RightColumns<Tile> b;
    reduce<false, false>(tile, shared, a, b, 1, with_bias, [&](int) {
        a.start(m.d_y, first_row, outputs);
        b.start(p.x, first, c_in);
        return (int)p.rows;
    });
    if (with_bias) {
        tile.for_bias([&](int row, float sum) {
            if (first_row + row < outputs) put(m.d_bias + first_row + row, sum, m.add_bias);
        });
    }
    if (!m.d_weight) return;
    give<Tile, float>(tile, (float *)shared, outputs - first_row, c_in - first, [&](int row, int column, Values<float> &values) {
        float *to = m.d_weight + (Len)(first_row + row) * c_in + first + column;
        values.write(to, min(c_in - first - column, CHUNK<float>), m.add);
    });
}

using Large = Fused<128, 128, 8, 8>;
using Small = Fused<32, 32, 4, 4>;
using Large16 = Tensor<Bf16, 128, 128, 2, 2>;
using Medium16 = Tensor<Bf16, 64, 64, 2, 2>;
using Small16 = Tensor<Bf16, 32, 32, 1, 2>;
using Large32 = Tensor<float, 128, 128, 2, 2>;
using Medium32 = Tensor<float, 64, 64, 2, 2>;
using Small32 = Tensor<float, 32, 32, 1, 2>;

ENTRY(linear_forward_f32_128x128, LinearGroup, 256) { linear_forward<Large>(p); }
ENTRY(linear_forward_f32_32x32, LinearGroup, 64) { linear_forward<Small>(p); }
ENTRY(linear_forward_tf32_128x128, LinearGroup, 128) { linear_forward<Large32>(p); }
ENTRY(linear_forward_tf32_32x32, LinearGroup, 64) { linear_forward<Small32>(p); }
ENTRY(linear_forward_bf16_128x128, LinearGroup, 128) { linear_forward<Large16>(p); }
ENTRY(linear_forward_bf16_32x32, LinearGroup, 64) { linear_forward<Small16>(p); }
ENTRY(linear_backward_data_tf32_128x128, LinearGroup, 128) { linear_backward_data<Large32>(p); }
ENTRY(linear_backward_data_tf32_32x32, LinearGroup, 64) { linear_backward_data<Small32>(p); }
ENTRY(linear_backward_data_bf16_128x128, LinearGroup, 128) { linear_backward_data<Large16>(p); }
ENTRY(linear_backward_data_bf16_32x32, LinearGroup, 64) { linear_backward_data<Small16>(p); }
ENTRY(linear_backward_weight_tf32_64x64, LinearGroup, 128) { linear_backward_weight<Medium32>(p); }
ENTRY(linear_backward_weight_bf16_64x64, LinearGroup, 128) { linear_backward_weight<Medium16>(p); }
