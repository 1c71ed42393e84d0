// Linear layers that read the same rows, in one launch a pass.
//
//   forward         y_i = x w_i^T + bias_i
//   backward data   d_x = sum over i of d_y_i w_i, added in the order of the members
//   backward weight d_w_i = d_y_i^T x, d_bias_i = column sums of d_y_i
//
// x: [rows, c_in], y_i: [rows, columns_i], w_i: [columns_i, c_in], all f32. For few rows
// (time embeddings), where a layer alone fills a small part of the device, or does not fill
// whole chunks of 16 bytes; see linear.cu for the rest.
//
// A block of 64 threads computes 32 x 32 results, 4 x 4 a thread; the reduction comes
// through shared memory 32 terms at a time. Every result is one chain of fused
// multiply-adds in the order of the reduction, and the weight gradient's lanes (tiles
// lane, lane + lanes, ... of the rows) are added in order: the bits are those of the
// layers' own launches (matmul.cuh).
#include "common.cuh"

constexpr int SIDE = 32, PITCH = SIDE + 4, THREADS = 64, OWN = 4;

/// 32 x 32 values; rows lie 36 apart, so that eight rows meet all banks once.
struct Tile {
    float v[SIDE][PITCH];
};

/// Brings the corner of a matrix whose rows lie `pitch` apart, zeros past its ends.
INLINE void fetch(Tile &to, const float *from, int pitch, int rows, int columns) {
#pragma unroll
    for (int i = 0; i < SIDE * SIDE / GROUP / THREADS; i++) {
        int at = threadIdx.x + i * THREADS, row = at / (SIDE / GROUP), c = at % (SIDE / GROUP) * GROUP;
        int count = row < rows ? min(max(columns - c, 0), GROUP) : 0;
        Group g = {0, 0, 0, 0};
        if (count > 0) g = load(from + (Len)row * pitch + c, count);
        *(float4 *)&to.v[row][c] = make_float4(g[0], g[1], g[2], g[3]);
    }
}

/// Results of a thread: rows 4 y .. 4 y + 3, columns x, x + 8, x + 16, x + 24.
struct Sums {
    float v[OWN][OWN];
    static INLINE int row(int i) { return threadIdx.x / 8 * OWN + i; }
    static INLINE int column(int j) { return threadIdx.x % 8 + 8 * j; }

    INLINE void clear() {
#pragma unroll
        for (int i = 0; i < OWN; i++)
#pragma unroll
            for (int j = 0; j < OWN; j++) v[i][j] = 0.0f;
    }

    /// Adds products of `terms` terms; operands lie [result][term], or [term][result].
    template <bool A_ROWS, bool B_ROWS> INLINE void multiply(const Tile &a, const Tile &b, int terms) {
#pragma unroll 1
        for (int k0 = 0; k0 < terms; k0 += 4) {
            float left[OWN][4], right[OWN][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float4 f = A_ROWS ? *(const float4 *)&a.v[row(i)][k0] : *(const float4 *)&a.v[k0 + i][row(0)];
                float four[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
                for (int k = 0; k < 4; k++) (A_ROWS ? left[i][k] : left[k][i]) = four[k];
            }
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                if (B_ROWS) {
                    float4 f = *(const float4 *)&b.v[column(j)][k0];
                    right[j][0] = f.x, right[j][1] = f.y, right[j][2] = f.z, right[j][3] = f.w;
                } else {
#pragma unroll
                    for (int k = 0; k < 4; k++) right[j][k] = b.v[k0 + k][column(j)];
                }
            }
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int i = 0; i < OWN; i++)
#pragma unroll
                    for (int j = 0; j < OWN; j++) v[i][j] = fmaf(left[i][k], right[j][k], v[i][j]);
        }
    }

    /// Calls f(row, column, value) for the results inside.
    template <class F> INLINE void each(int rows, int columns, F f) const {
#pragma unroll
        for (int i = 0; i < OWN; i++)
#pragma unroll
            for (int j = 0; j < OWN; j++)
                if (row(i) < rows && column(j) < columns) f(row(i), column(j), v[i][j]);
    }

    INLINE void add(const Sums &other) {
#pragma unroll
        for (int i = 0; i < OWN; i++)
#pragma unroll
            for (int j = 0; j < OWN; j++) v[i][j] = v[i][j] + other.v[i][j];
    }
};

/// The member that a block belongs to, blocks being numbered through all members.
INLINE int member_of(const LinearGroup &p, Word block) {
    Word i = 0;
    while (i + 1 < p.count && block >= p.members[i + 1].first_block) i++;
    return (int)i;
}

ENTRY(linear_group_forward_f32, LinearGroup, 64) {
    __shared__ Tile a, b;
    const LinearMember &m = p.members[member_of(p, blockIdx.x)];
    int first_row = blockIdx.y * SIDE, first = (blockIdx.x - m.first_block) * SIDE;
    int rows = (int)p.rows - first_row, columns = (int)m.columns - first, c_in = (int)p.c_in;
    Sums sums;
    sums.clear();
    for (int k = 0; k < c_in; k += SIDE) {
        __syncthreads();
        fetch(a, (const float *)p.x + (Len)first_row * c_in + k, c_in, rows, c_in - k);
        fetch(b, (const float *)m.weight + (Len)first * c_in + k, c_in, columns, c_in - k);
        __syncthreads();
        sums.multiply<true, true>(a, b, min(c_in - k, SIDE));
    }
    sums.each(rows, columns, [&](int row, int column, float v) {
        if (m.bias) v = v + m.bias[first + column];
        ((float *)m.y)[(Len)(first_row + row) * m.columns + first + column] = v;
    });
}

ENTRY(linear_group_backward_data_f32, LinearGroup, 64) {
    __shared__ Tile a, b;
    int first_row = blockIdx.y * SIDE, first = blockIdx.x * SIDE;
    int rows = (int)p.rows - first_row, c_in = (int)p.c_in, columns = c_in - first;
    float *d_x = (float *)p.d_x;
    Sums total;
    for (int i = 0; i < (int)p.count; i++) {
        const LinearMember &m = p.members[i];
        int outputs = (int)m.columns;
        Sums sums;
        sums.clear();
        for (int k = 0; k < outputs; k += SIDE) {
            __syncthreads();
            fetch(a, (const float *)m.d_y + (Len)first_row * outputs + k, outputs, rows, outputs - k);
            fetch(b, (const float *)m.weight + (Len)k * c_in + first, c_in, outputs - k, columns);
            __syncthreads();
            sums.multiply<true, false>(a, b, min(outputs - k, SIDE));
        }
        if (i == 0) total = sums;
        else total.add(sums);
        if (i == 0 && p.add) {
            Sums before;
            before.clear();
            for (int r = 0; r < OWN; r++) {
                for (int c = 0; c < OWN; c++) {
                    if (Sums::row(r) >= rows || Sums::column(c) >= columns) continue;
                    before.v[r][c] = d_x[(Len)(first_row + Sums::row(r)) * c_in + first + Sums::column(c)];
                }
            }
            total.add(before);
        }
    }
    total.each(rows, columns, [&](int row, int column, float v) {
        d_x[(Len)(first_row + row) * c_in + first + column] = v;
    });
}

ENTRY(linear_group_backward_weight_f32, LinearGroup, 64) {
    __shared__ Tile a, b;
    const LinearMember &m = p.members[member_of(p, blockIdx.x)];
    int first_row = (blockIdx.x - m.first_block) * SIDE, first = blockIdx.y * SIDE;
    int outputs = (int)m.columns, c_in = (int)p.c_in, rows = outputs - first_row, columns = c_in - first;
    int tiles = ((int)p.rows + SIDE - 1) / SIDE;
    bool with_bias = m.d_bias && blockIdx.y == 0 && threadIdx.x < SIDE;
    Sums total;
    float total_bias = 0.0f;
    for (int lane = 0; lane < (int)m.lanes; lane++) {
        Sums sums;
        sums.clear();
        float bias = 0.0f;
        for (int t = lane; t < tiles; t += (int)m.lanes) {
            int k = t * SIDE, terms = min((int)p.rows - k, SIDE);
            __syncthreads();
            fetch(a, (const float *)m.d_y + (Len)k * outputs + first_row, outputs, terms, rows);
            fetch(b, (const float *)p.x + (Len)k * c_in + first, c_in, terms, columns);
            __syncthreads();
            sums.multiply<false, false>(a, b, terms);
            if (with_bias) {
                for (int i = 0; i < terms; i++) bias += a.v[i][threadIdx.x];
            }
        }
        if (lane == 0) {
            total = sums;
            total_bias = bias;
        } else {
            total.add(sums);
            total_bias = total_bias + bias;
        }
    }
    if (with_bias && (int)threadIdx.x < rows) put(m.d_bias + first_row + threadIdx.x, total_bias, m.add_bias);
    if (!m.d_weight) return;
    total.each(rows, columns, [&](int row, int column, float v) {
        put(m.d_weight + (Len)(first_row + row) * c_in + first + column, v, m.add);
    });
}
