// Tensors of few channels, whose pixels 16 bytes straddle: the images of first and last layers.
//
// What a tile needs of such a tensor lies in whole rows of pixels side by side. They are
// brought into shared memory as they are, 16 bytes at a time and each element once, and the
// tile of the operand is built from there. Without groups and a second tensor.
#pragma once
#include "gather.cuh"
#include "outer.cuh"

/// Elements side by side, brought to shared memory from a multiple of 16 bytes on.
struct Range {
    int from, to;

    /// First element that is brought.
    template <typename T> INLINE int first() const { return from & -CHUNK<T>; }

    /// Elements of room, whole multiples of 16 bytes.
    template <typename T> INLINE int room() const { return (to - first<T>() + CHUNK<T> - 1) & -CHUNK<T>; }

    /// Brings them from a tensor of `len` elements.
    template <typename T, int THREADS> INLINE void bring(unsigned at, const T *tensor, int len) const {
        int first = this->first<T>();
#pragma unroll 1
        for (int i = first + (int)threadIdx.x * CHUNK<T>; i < to; i += THREADS * CHUNK<T>) {
            unsigned slot = at + (i - first) * (int)sizeof(T);
            if (i + CHUNK<T> <= len) {
                copy16(slot, tensor + i, 1u);
            } else {
                for (int e = 0; i + e < len; e++) copy_element(slot + e * (int)sizeof(T), tensor + i + e, true);
            }
        }
    }
};

/// Elements of x that `count` results of a pass read, in whole rows of its pixels.
template <class P> INLINE Range sources_of(const P &p, int first, int count) {
    int area = p.down.count * p.along.count, last = min(first + count, p.pixels) - 1;
    int width = p.along.source >> p.enlarge, height = p.down.source >> p.enlarge;
    int reach = (p.down.taps - 1) * p.down.shift_step;
    auto row = [&](int pixel, int shift) {
        int y = p.down.scale * (pixel % area / p.along.count) + p.down.shift + shift;
        return pixel / area * height + (min(max(y, 0), p.down.source - 1) >> p.enlarge);
    };
    int pitch = width * p.x_channels;
    return {row(first, min(reach, 0)) * pitch, (row(last, max(reach, 0)) + 1) * pitch};
}

/// Elements of x in all.
template <class P> INLINE int x_len(const P &p) {
    return p.images * (p.down.source >> p.enlarge) * (p.along.source >> p.enlarge) * p.x_channels;
}

/// One term of a reduction, or one column of a weight: how far its tap lies from the first
/// (two halves), its channel of x, and where its row of the weight begins.
struct Term {
    int offset, channel, weight, never;
};

/// One tile of a gathering pass from few channels. Grid as `gather`, without lanes.
template <class Tile, bool FORWARD> INLINE void gather_few(const ConvGather &p) {
    using T = typename Tile::T;
    constexpr int STEP = DEPTH<T>, EACH = CHUNK<T>, ROWS = Tile::THREADS / 8;
    extern __shared__ __align__(128) unsigned char shared[];
    int first_row = blockIdx.x * Tile::BM, first_column = blockIdx.y * Tile::BN;
    int total = p.down.taps * p.along.taps * p.reduced, area = p.down.count * p.along.count;
    int height = p.down.source >> p.enlarge, width = p.along.source >> p.enlarge;

    Term *terms = (Term *)(shared + STAGE_BYTES<Tile>);
    T *weight = (T *)(terms + total), *image = weight;
    for (int k = threadIdx.x; k < total; k += Tile::THREADS) {
        int tap = k / p.reduced, channel = k % p.reduced;
        Walk walk = {tap / p.along.taps, tap % p.along.taps, 0, 0};
        int offset = walk.tap_y * p.down.shift_step << 16 | (walk.tap_x * p.along.shift_step & 0xffff);
        terms[k] = {offset, channel, (channel * p.kernel_taps + walk.tap(p)) * p.columns, 0};
    }
    if (FORWARD) {
        Range rows = {first_column * total, min(first_column + Tile::BN, p.columns) * total};
        image += rows.room<T>();
        rows.bring<T, Tile::THREADS>(shared_address(weight), (const T *)p.weight, p.columns * total);
    }
    Range range = sources_of(p, first_row, Tile::BM);
    range.bring<T, Tile::THREADS>(shared_address(image), (const T *)p.x, x_len(p));
    commit_copies();

    Tile tile;
    tile.clear();
    auto at = Tile::template start<true, FORWARD>();
    unsigned left = shared_address(shared), right = left + Tile::BM * ROW_BYTES;
#pragma unroll 1
    for (int k0 = 0; k0 < total; k0 += STEP) {
        await_copies<0>();
        __syncthreads();
        int chunk = threadIdx.x % 8 * EACH;
#pragma unroll 1
        for (int i = 0; i < Tile::BM / ROWS; i++) {
            int row = first_row + threadIdx.x / 8 + i * ROWS, at = row % area;
            int y = p.down.scale * (at / p.along.count) + p.down.shift;
            int x = p.along.scale * (at % p.along.count) + p.along.shift;
            const T *from = image + row / area * height * width * p.x_channels - range.first<T>();
            __align__(16) T values[EACH];
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                int k = k0 + chunk + e;
                Term term = terms[min(k, total - 1)];
                unsigned sy = y + (term.offset >> 16), sx = x + (short)term.offset;
                bool inside = k < total && row < p.pixels && sy < (unsigned)p.down.source && sx < (unsigned)p.along.source;
                int pixel = (sy >> p.enlarge) * width + (sx >> p.enlarge);
                values[e] = inside ? from[pixel * p.x_channels + term.channel] : (T)0.0f;
            }
            store16(row_slot<Tile::THREADS, Tile::SWIZZLE_A>(left, i), values);
        }
        if (FORWARD) {
#pragma unroll 1
            for (int i = 0; i * ROWS + (int)threadIdx.x / 8 < Tile::BN; i++) {
                int row = i * ROWS + threadIdx.x / 8;
                __align__(16) T values[EACH];
#pragma unroll
                for (int e = 0; e < EACH; e++) {
                    int k = k0 + chunk + e;
                    values[e] = k < total && first_column + row < p.columns ? weight[row * total + k] : (T)0.0f;
                }
                store16(row_slot<Tile::THREADS, Tile::SWIZZLE_B>(right, i), values);
            }
        } else {
            constexpr int CHUNKS = Tile::BN / EACH;
#pragma unroll 1
            for (int i = threadIdx.x; i < STEP * CHUNKS; i += Tile::THREADS) {
                int k = i / CHUNKS, column = first_column + i % CHUNKS * EACH;
                unsigned slot = right + k * (Tile::BN * (int)sizeof(T)) + place<Tile::ORDER, CHUNKS>(k, i % CHUNKS) * 16;
                bool inside = k0 + k < total && column < p.columns;
                copy16(slot, (const T *)p.weight + (inside ? terms[k0 + k].weight + column : 0), inside);
            }
            commit_copies();
            await_copies<0>();
        }
        __syncthreads();
        tile.template multiply<true, FORWARD>(at, shared, min(total - k0, STEP), false);
    }
    store_gathered(p, tile, shared, 0, 0);
}

/// d_y of few channels: the left operand of `outer`.
template <class Tile> struct GradientFew {
    using T = typename Tile::T;
    using A = Share<Tile, Tile::BM>;
    static constexpr int PIXELS = DEPTH<T>;
    /// Pixels of two tiles as they are in memory.
    T *images;
    int room, half, next, before, first_row;

    INLINE Range range(const ConvOuter &p, int tile) const {
        return {tile * PIXELS * p.c_out, min((tile + 1) * PIXELS, p.pixels) * p.c_out};
    }

    INLINE void start(const ConvOuter &p, int, int lane, int first, unsigned char *scratch) {
        images = (T *)(scratch + p.few_offset);
        room = p.few_len;
        half = 0;
        next = lane;
        before = lane;
        first_row = first;
    }

    /// Brings the pixels of the next tile.
    INLINE void look_ahead(const ConvOuter &p) {
        if (next < p.tiles) {
            range(p, next).template bring<T, Tile::THREADS>(shared_address(images + half), (const T *)p.d_y,
                                                            p.pixels * p.c_out);
        }
        next += p.lanes;
        half = room - half;
    }

    /// Builds the tile whose pixels were brought before those last brought.
    INLINE void fetch(const ConvOuter &p, unsigned tile) {
        Range range = this->range(p, before);
        const T *image = images + half + (range.from - range.first<T>());
#pragma unroll 1
        for (int r = A::row(); r < PIXELS; r += A::STEP) {
            int left = before * PIXELS + r < p.pixels ? p.c_out - first_row - A::chunk() * CHUNK<T> : 0;
            const T *from = image + r * p.c_out + first_row + A::chunk() * CHUNK<T>;
            __align__(16) T values[CHUNK<T>];
#pragma unroll
            for (int e = 0; e < CHUNK<T>; e++) values[e] = e < left ? from[e] : (T)0.0f;
            store16(tile + A::slot(r), values);
        }
        before += p.lanes;
    }
};

/// Gathered x of few channels: the right operand.
template <class Tile> struct SourceFew {
    using T = typename Tile::T;
    using B = Share<Tile, Tile::BN>;
    static constexpr int PIXELS = DEPTH<T>;
    /// Of the block's columns; then pixels as in GradientFew.
    Term *terms;
    T *images;
    int room, half, next, before;

    INLINE void start(const ConvOuter &p, int, int lane, int first, unsigned char *scratch) {
        terms = (Term *)scratch;
        images = (T *)(terms + Tile::BN);
        room = p.few_len;
        half = 0;
        next = lane;
        before = lane;
        for (int i = threadIdx.x; i < Tile::BN; i += Tile::THREADS) {
            int column = first + i, tap = column / p.c_in;
            int down = tap / p.kernel_width * p.down.shift_step, along = tap % p.kernel_width * p.along.shift_step;
            terms[i] = {down << 16 | (along & 0xffff), column % p.c_in, 0, column >= p.kernel_taps * p.c_in};
        }
    }

    INLINE void look_ahead(const ConvOuter &p) {
        if (next < p.tiles) {
            sources_of(p, next * PIXELS, PIXELS)
                .template bring<T, Tile::THREADS>(shared_address(images + half), (const T *)p.x, x_len(p));
        }
        next += p.lanes;
        half = room - half;
    }

    INLINE void fetch(const ConvOuter &p, unsigned tile) {
        const T *image = images + half - sources_of(p, before * PIXELS, PIXELS).template first<T>();
#pragma unroll 1
        for (int r = B::row(); r < PIXELS; r += B::STEP) {
            PixelWalk walk;
            walk.start(p, before * PIXELS + r);
            __align__(16) T values[CHUNK<T>];
#pragma unroll
            for (int e = 0; e < CHUNK<T>; e++) {
                Term term = terms[B::chunk() * CHUNK<T> + e];
                int pixel = term.never ? -1 : walk.source(p, term.offset >> 16, (short)term.offset);
                values[e] = pixel < 0 ? (T)0.0f : image[pixel * p.x_channels + term.channel];
            }
            store16(tile + Tile::BM * ROW_BYTES + B::slot(r), values);
        }
        before += p.lanes;
    }
};

template <class Tile> using FewInputs = Apart<Tile, GradientColumns<Tile>, SourceFew<Tile>>;
template <class Tile> using FewOutputs = Apart<Tile, GradientFew<Tile>, SourceColumns<Tile>>;
