// The backward pass to the weight; see matmul.cuh.
#pragma once
#include "tiles.cuh"
#include <type_traits>

/// A position among the pixels of a pass, which moves on by a fixed number.
struct PixelStep {
    int images, rows, columns;
    INLINE void start(const ConvOuter &p, int pixels) {
        columns = pixels % p.along.count;
        rows = pixels / p.along.count % p.down.count;
        images = pixels / (p.along.count * p.down.count);
    }
};

struct PixelWalk {
    int image, y, x;
    INLINE void start(const ConvOuter &p, int pixel) {
        image = pixel / (p.down.count * p.along.count);
        y = pixel / p.along.count % p.down.count;
        x = pixel % p.along.count;
    }
    INLINE void move(const ConvOuter &p, const PixelStep &s) {
        x += s.columns;
        int down = x >= p.along.count;
        x -= down ? p.along.count : 0;
        y += s.rows + down;
        int next = y >= p.down.count;
        y -= next ? p.down.count : 0;
        image += s.images + next;
    }
    /// Pixel of x that this one reads by the tap `down` and `along` the first one; -1 where it
    /// is padding or does not exist.
    INLINE int source(const ConvOuter &p, int down, int along) const {
        unsigned sy = p.down.scale * y + p.down.shift + down, sx = p.along.scale * x + p.along.shift + along;
        bool inside = sy < (unsigned)p.down.source && sx < (unsigned)p.along.source && image < p.images;
        int height = p.down.source >> p.enlarge, width = p.along.source >> p.enlarge;
        int pixel = (image * height + (int)(sy >> p.enlarge)) * width + (int)(sx >> p.enlarge);
        return inside ? pixel : -1;
    }
};

/// Which chunk of which rows of an [pixel of the tile][COLUMNS] tile a thread copies.
template <class Tile, int COLUMNS> struct Share {
    using T = typename Tile::T;
    static constexpr int CHUNKS = COLUMNS / CHUNK<T>, STEP = Tile::THREADS / CHUNKS, PASSES = DEPTH<T> / STEP;
    static constexpr int PITCH = COLUMNS * (int)sizeof(T);
    static_assert(Tile::THREADS % CHUNKS == 0, "whole rows");
    static INLINE int chunk() { return threadIdx.x % CHUNKS; }
    static INLINE int row() { return threadIdx.x / CHUNKS; }
    static INLINE unsigned slot(int row) { return row * PITCH + place<Tile::ORDER, CHUNKS>(row, chunk()) * 16; }
};

/// d_y where 16 bytes never straddle a pixel: the left operand of `outer`.
template <class Tile> struct GradientColumns {
    using T = typename Tile::T;
    using A = Share<Tile, Tile::BM>;
    static constexpr int PIXELS = DEPTH<T>;
    // Rows of a thread lie whole permutations apart.
    static_assert(place<Tile::ORDER, A::CHUNKS>(A::STEP, 0) == 0 && A::PASSES * A::STEP == PIXELS);
    const char *from;
    int pitch;
    /// Pixels from this thread's first row on.
    int left, pixels;
    unsigned slot;
    bool never;

    INLINE void start(const ConvOuter &p, int group, int lane, int first, unsigned char *) {
        int row = first + A::chunk() * CHUNK<T>;
        never = row >= p.c_out;
        pitch = p.groups * p.c_out * (int)sizeof(T);
        from = (const char *)p.d_y + (group * p.c_out + (never ? 0 : row)) * sizeof(T) +
               (Len)(lane * PIXELS + A::row()) * pitch;
        pixels = p.lanes * PIXELS;
        left = p.pixels - lane * PIXELS - A::row();
        slot = A::slot(A::row());
        keep(slot);
    }

    INLINE void look_ahead(const ConvOuter &) {}

    INLINE void fetch(const ConvOuter &, unsigned tile) {
#pragma unroll
        for (int i = 0; i < A::PASSES; i++)
            copy16_from(tile + slot + i * A::STEP * A::PITCH, from + (Len)(i * A::STEP) * pitch, left, i * A::STEP + 1,
                        never);
        from += (Len)pixels * pitch;
        left -= pixels;
    }
};

/// Gathered x where 16 bytes never straddle a pixel: the right operand. Which pixel of x a
/// pixel of the tile reads is worked out once for all channels of a tap, a tile ahead, by a
/// thread for each, and left in a table.
template <class Tile> struct SourceColumns {
    using T = typename Tile::T;
    using B = Share<Tile, Tile::BN>;
    static constexpr int PIXELS = DEPTH<T>, MOST_TAPS = Tile::BN / CHUNK<T>;
    // Rows of a thread lie whole permutations apart, and their sources side by side.
    static_assert(place<Tile::ORDER, B::CHUNKS>(B::STEP, 0) == 0 && B::PASSES * B::STEP == PIXELS &&
                  B::PASSES % 4 == 0 && Tile::THREADS % PIXELS == 0);
    const char *x;
    int x_pitch;
    unsigned slot;
    bool never;
    PixelWalk walk;
    PixelStep step;
    /// For each tap that the block's columns belong to how far it lies from the first (two
    /// halves), then the sources of two tiles, [taps][PIXELS] in the order of their readers.
    int *steps;
    int taps, from, to, half;

    INLINE void start(const ConvOuter &p, int group, int lane, int first, unsigned char *scratch) {
        slot = Tile::BM * ROW_BYTES + B::slot(B::row());
        keep(slot);
        int all = p.kernel_taps * p.c_in, column = first + B::chunk() * CHUNK<T>;
        never = column >= all;
        int first_tap = first / p.c_in, tap = never ? first_tap : column / p.c_in;
        int channel = group * p.c_in + (never ? 0 : column % p.c_in);
        bool second = channel >= p.x_channels;
        x_pitch = (second ? p.x2_channels : p.x_channels) * (int)sizeof(T);
        x = (const char *)(second ? p.x2 : p.x) + (second ? channel - p.x_channels : channel) * sizeof(T);
        keep(x);

        taps = (min(first + Tile::BN, all) - 1) / p.c_in - first_tap + 1;
        int entry = threadIdx.x % PIXELS;
        walk.start(p, lane * PIXELS + entry / B::PASSES + entry % B::PASSES * B::STEP);
        step.start(p, p.lanes * PIXELS);
        steps = (int *)scratch;
        from = MOST_TAPS + (tap - first_tap) * PIXELS + B::row() * B::PASSES;
        to = MOST_TAPS + entry;
        half = 0;
        for (int i = threadIdx.x; i < taps; i += Tile::THREADS) {
            int down = (first_tap + i) / p.kernel_width * p.down.shift_step;
            int along = (first_tap + i) % p.kernel_width * p.along.shift_step;
            steps[i] = down << 16 | (along & 0xffff);
        }
        __syncthreads();
    }

    /// Works out the sources of the next tile.
    INLINE void look_ahead(const ConvOuter &p) {
#pragma unroll 1
        for (int i = threadIdx.x / PIXELS; i < taps; i += Tile::THREADS / PIXELS)
            steps[half + to + i * PIXELS] = walk.source(p, steps[i] >> 16, (short)steps[i]);
        walk.move(p, step);
        half = taps * PIXELS - half;
    }

    /// Copies the tile whose sources were worked out before those last worked out.
    INLINE void fetch(const ConvOuter &, unsigned tile) {
        int pixel[B::PASSES];
#pragma unroll
        for (int i = 0; i < B::PASSES; i += 4) {
            int4 four = *(const int4 *)(steps + half + from + i);
            pixel[i] = four.x, pixel[i + 1] = four.y, pixel[i + 2] = four.z, pixel[i + 3] = four.w;
        }
        // Seen anew in every turn, else the compiler widens it once and multiplies 64 bits.
        int pitch = x_pitch;
        keep(pitch);
#pragma unroll
        for (int i = 0; i < B::PASSES; i++)
            copy16_from(tile + slot + i * B::STEP * B::PITCH, x + (Len)pixel[i] * pitch, pixel[i], 0, never);
    }
};

/// Two operands that are read apart.
template <class Tile, class Gradient, class Sources> struct Apart {
    Gradient gradient;
    Sources sources;

    INLINE void start(const ConvOuter &p, int group, int lane, int first_row, int first_column, unsigned char *scratch) {
        gradient.start(p, group, lane, first_row, scratch);
        sources.start(p, group, lane, first_column, scratch);
    }
    INLINE void look_ahead(const ConvOuter &p) {
        sources.look_ahead(p);
        gradient.look_ahead(p);
    }
    INLINE void fetch(const ConvOuter &p, unsigned tile) {
        sources.fetch(p, tile);
        gradient.fetch(p, tile);
    }
};

template <class Tile> using BothColumns = Apart<Tile, GradientColumns<Tile>, SourceColumns<Tile>>;

/// Both operands element by element, for any number of channels.
template <class Tile> struct OuterElements {
    using T = typename Tile::T;
    using A = Share<Tile, Tile::BM>;
    using B = Share<Tile, Tile::BN>;
    static constexpr int PIXELS = DEPTH<T>, EACH = CHUNK<T>;
    int tap_y[EACH], tap_x[EACH], pitch[EACH];
    const T *x[EACH];
    const T *d_y;
    int rows_left, row_channel;
    PixelWalk walk;
    PixelStep small, jump;
    int tile_index;

    INLINE void start(const ConvOuter &p, int group, int lane, int first_row, int first_column, unsigned char *) {
        int all = p.kernel_taps * p.c_in;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int column = first_column + B::chunk() * EACH + e;
            bool exists = column < all;
            int tap = exists ? column / p.c_in : 0;
            int channel = group * p.c_in + (exists ? column % p.c_in : 0);
            tap_y[e] = exists ? tap / p.kernel_width : -1;
            tap_x[e] = tap % p.kernel_width;
            bool second = channel >= p.x_channels;
            pitch[e] = second ? p.x2_channels : p.x_channels;
            x[e] = (const T *)(second ? p.x2 : p.x) + (second ? channel - p.x_channels : channel);
        }
        d_y = (const T *)p.d_y;
        rows_left = p.c_out - first_row - A::chunk() * EACH;
        row_channel = rows_left > 0 ? group * p.c_out + first_row + A::chunk() * EACH : 0;
        small.start(p, B::STEP);
        jump.start(p, (p.lanes - 1) * PIXELS);
        walk.start(p, lane * PIXELS + B::row());
        tile_index = lane;
    }

    INLINE void look_ahead(const ConvOuter &) {}

    INLINE void fetch(const ConvOuter &p, unsigned tile) {
#pragma unroll 1
        for (int r = A::row(); r < PIXELS; r += A::STEP) {
            int pixel = tile_index * PIXELS + r;
            const T *from = d_y + (Len)pixel * (p.groups * p.c_out) + row_channel;
#pragma unroll 1
            for (int e = 0; e < EACH; e++) {
                bool inside = pixel < p.pixels && rows_left > e;
                copy_element(tile + A::slot(r) + e * sizeof(T), inside ? from + e : d_y, inside);
            }
        }
#pragma unroll 1
        for (int r = B::row(); r < PIXELS; r += B::STEP) {
            unsigned slot = tile + Tile::BM * ROW_BYTES + B::slot(r);
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                int pixel = tap_y[e] < 0 ? -1 : walk.source(p, tap_y[e] * p.down.shift_step, tap_x[e] * p.along.shift_step);
                copy_element(slot + e * sizeof(T), pixel < 0 ? x[e] : x[e] + (Len)pixel * pitch[e], pixel >= 0);
            }
            walk.move(p, small);
        }
        walk.move(p, jump);
        tile_index += p.lanes;
    }
};

/// One tile of the gradient by the weight. Grid: row tiles, column tiles, groups x lanes.
/// Lane l takes the tiles l, l + lanes, ... of the pixels. The last lane adds up all, or, where
/// there is no memory for the lanes' sums, each adds its own in its turn.
template <class Tile, class Operands = BothColumns<Tile>> INLINE void outer(const ConvOuter &p) {
    using T = typename Tile::T;
    constexpr int STEP = DEPTH<T>;
    extern __shared__ __align__(128) unsigned char shared[];
    int first_row = blockIdx.x * Tile::BM, first_column = blockIdx.y * Tile::BN;
    int group = blockIdx.z % p.groups, lane = blockIdx.z / p.groups;
    int all = p.kernel_taps * p.c_in, channels = p.groups * p.c_out;
    bool in_turn = p.lanes > 1 && !p.partial;
    if (in_turn) lane = draw_number(p.counters + 2 * tile_number(group), p.lanes, (Word *)shared);

    Tile tile;
    tile.clear();
    auto at = Tile::template start<false, false>();
    bool with_bias = p.d_bias && blockIdx.y == 0;
    Operands operands;
    operands.start(p, group, lane, first_row, first_column, shared + STAGES * STAGE_BYTES<Tile>);
    operands.look_ahead(p);
    commit_copies();
    auto reduce = [&](auto add_up) {
        int stage = 0;
#pragma unroll 1
        for (int t = lane; t < p.tiles + p.lanes; t += p.lanes) {
            await_copies<0>();
            __syncthreads();
            unsigned to = shared_address(shared) + stage * STAGE_BYTES<Tile>;
            operands.look_ahead(p);
            if (t < p.tiles) operands.fetch(p, to);
            commit_copies();
            stage ^= 1;
            int before = t - p.lanes;
            if (before < 0) continue;
            int terms = min(p.pixels - before * STEP, STEP);
            tile.template multiply<false, false>(at, shared + stage * STAGE_BYTES<Tile>, terms, decltype(add_up)::value);
        }
    };
    if (with_bias) reduce(std::true_type());
    else reduce(std::false_type());

    Word *turn = p.counters + 2 * tile_number(group) + 1;
    if (in_turn) await_turn(turn, lane);
    bool later = in_turn && lane > 0;
    // Rows of a lane's sums are filled up to whole 16 bytes.
    int pitch = (all + GROUP - 1) / GROUP * GROUP;
    Len weights = (Len)channels * pitch, size = weights + (channels + GROUP - 1) / GROUP * GROUP;
    float *partial = p.partial + lane * size;
    int first_out = group * p.c_out + first_row, rows = p.c_out - first_row, columns = all - first_column;
    if (with_bias) {
        tile.for_bias([&](int row, float sum) {
            if (row >= rows) return;
            if (p.partial) partial[weights + first_out + row] = sum;
            else put(p.d_bias + first_out + row, sum, p.add_bias || later);
        });
    }
    auto index = [&](int row, int column, int pitch) { return (Len)(first_out + row) * pitch + first_column + column; };
    auto count = [&](int column) { return min(columns - column, CHUNK<float>); };
    if (p.d_weight) {
        give<Tile, float>(tile, (float *)shared, rows, columns, [&](int row, int column, Values<float> &values) {
            if (p.partial) values.write(partial + index(row, column, pitch), CHUNK<float>, false);
            else values.write((float *)p.d_weight + index(row, column, all), count(column), p.add || later);
        });
    }
    if (in_turn) pass_turn(turn, lane, p.lanes);
    if (!p.partial || !is_last_block(p.counters + 2 * tile_number(group), p.lanes)) return;
    if (with_bias) {
        for (int row = threadIdx.x; row < min(rows, Tile::BM); row += Tile::THREADS) {
            float sum = 0.0f;
            for (int l = 0; l < p.lanes; l++) sum += p.partial[l * size + weights + first_out + row];
            put(p.d_bias + first_out + row, sum, p.add_bias);
        }
    }
    if (!p.d_weight) return;
    each_piece<Tile, float>([&](int row, int column) {
        if (row >= rows || column >= columns) return;
        Values<float> values;
        values.clear();
        for (int l = 0; l < p.lanes; l++)
            values.add(p.partial + l * size + index(row, column, pitch), CHUNK<float>);
        values.write((float *)p.d_weight + index(row, column, all), count(column), p.add);
    });
}
