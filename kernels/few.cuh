// Tensors of few channels, whose pixels 16 bytes straddle: the images of first and last layers.
//
// What a tile needs of such a tensor lies in whole rows of pixels side by side. They are
// brought into shared memory as they are, 16 bytes at a time and each element once, and the
// tile of the operand is built from there. Without groups and a second tensor.
#pragma once
#include "gather.cuh"
#include "outer.cuh"

/// Elements of x that `count` of the `pixels` results of a pass read, in whole rows of its pixels.
INLINE Range sources_of(const ConvAxis &down, const ConvAxis &along, int enlarge, int channels, int pixels, int first,
                        int count) {
    int area = down.count * along.count, last = min(first + count, pixels) - 1;
    int width = along.source >> enlarge, height = down.source >> enlarge;
    int reach = (down.taps - 1) * down.shift_step;
    auto row = [&](int pixel, int shift) {
        int y = down.scale * (pixel % area / along.count) + down.shift + shift;
        return pixel / area * height + (min(max(y, 0), down.source - 1) >> enlarge);
    };
    int pitch = width * channels;
    return {row(first, min(reach, 0)) * pitch, (row(last, max(reach, 0)) + 1) * pitch};
}

/// Elements of x in all.
INLINE int x_len(const ConvAxis &down, const ConvAxis &along, int enlarge, int channels, int images) {
    return images * (down.source >> enlarge) * (along.source >> enlarge) * channels;
}

/// One term of a reduction, or one column of a weight: how far its tap lies from the first
/// (two halves), its channel of x, and where its row of the weight begins.
struct Term {
    int offset, channel, weight, never;
};

/// One tile of a gathering pass from few channels. Grid as `gather`, without lanes.
template <class Tile, bool FORWARD> INLINE void gather_few(const ConvGather &all) {
    using T = typename Tile::T;
    constexpr int STEP = DEPTH<T>, EACH = CHUNK<T>;
    extern __shared__ __align__(128) unsigned char shared[];
    Gathered p = Gathered::of<FORWARD>(all, blockIdx.z);
    int first_row = blockIdx.x * Tile::BM, first_column = blockIdx.y * Tile::BN;
    if (!FORWARD && first_row >= p.pixels) return;
    int total = p.down.taps * p.along.taps * p->reduced, area = p.down.count * p.along.count;
    int height = p.down.source >> p->enlarge, width = p.along.source >> p->enlarge;

    Term *terms = (Term *)(shared + STAGE_BYTES<Tile>);
    T *weight = (T *)(terms + total), *image = weight;
    for (int k = threadIdx.x; k < total; k += Tile::THREADS) {
        int tap = k / p->reduced, channel = k % p->reduced;
        Walk walk = {tap / p.along.taps, tap % p.along.taps, 0, 0};
        int offset = walk.tap_y * p.down.shift_step << 16 | (walk.tap_x * p.along.shift_step & 0xffff);
        terms[k] = {offset, channel, (channel * p->kernel_taps + walk.tap(p)) * p->columns, 0};
    }
    if (FORWARD) {
        Range rows = {first_column * total, min(first_column + Tile::BN, p->columns) * total};
        image += rows.room<T>();
        rows.bring<T, Tile::THREADS>(shared_address(weight), (const T *)p->weight, p->columns * total);
    }
    Range range = sources_of(p.down, p.along, p->enlarge, p->x_channels, p.pixels, first_row, Tile::BM);
    range.bring<T, Tile::THREADS>(shared_address(image), (const T *)p->x,
                                  x_len(p.down, p.along, p->enlarge, p->x_channels, p->images));
    commit_copies();

    Tile tile;
    tile.clear();
    auto at = Tile::template start<true, FORWARD>();
    unsigned left = shared_address(shared), right = left + Tile::BM * ROW_BYTES;
#pragma unroll 1
    for (int k0 = 0; k0 < total; k0 += STEP) {
        await_copies<0>();
        __syncthreads();
        // Whole steps of a multiplication, of two chunks.
        int chunks = (min(total - k0, STEP) + 2 * EACH - 1) / (2 * EACH) * 2;
        auto slot = [](unsigned tile, int row, int chunk, int swizzle) {
            return tile + row * ROW_BYTES + (chunk ^ (row >> swizzle & 7)) * 16;
        };
        auto left_slot = [&](int row, int chunk) { return slot(left, row, chunk, Tile::SWIZZLE_A); };
        build_rows<T, Tile::BM, Tile::THREADS>(chunks, left_slot, [&](int row, int r, int chunk, int e) {
            int pixel = first_row + row + r, at = pixel % area, k = k0 + chunk * EACH + e;
            int y = p.down.scale * (at / p.along.count) + p.down.shift;
            int x = p.along.scale * (at % p.along.count) + p.along.shift;
            const T *from = image + pixel / area * height * width * p->x_channels - range.first<T>();
            Term term = terms[min(k, total - 1)];
            unsigned sy = y + (term.offset >> 16), sx = x + (short)term.offset;
            bool inside = k < total && pixel < p.pixels && sy < (unsigned)p.down.source && sx < (unsigned)p.along.source;
            int source = (sy >> p->enlarge) * width + (sx >> p->enlarge);
            return inside ? from[source * p->x_channels + term.channel] : (T)0.0f;
        });
        if (FORWARD) {
            auto right_slot = [&](int row, int chunk) { return slot(right, row, chunk, Tile::SWIZZLE_B); };
            build_rows<T, Tile::BN, Tile::THREADS>(chunks, right_slot, [&](int row, int r, int chunk, int e) {
                int k = k0 + chunk * EACH + e, column = row + r;
                return k < total && first_column + column < p->columns ? weight[column * total + k] : (T)0.0f;
            });
        } else {
            constexpr int CHUNKS = Tile::BN / EACH;
#pragma unroll 1
            for (int i = threadIdx.x; i < chunks * EACH * CHUNKS; i += Tile::THREADS) {
                int k = i / CHUNKS, column = first_column + i % CHUNKS * EACH;
                unsigned to = right + k * (Tile::BN * (int)sizeof(T)) + place<Tile::ORDER, CHUNKS>(k, i % CHUNKS) * 16;
                bool inside = k0 + k < total && column < p->columns;
                copy16(to, (const T *)p->weight + (inside ? terms[k0 + k].weight + column : 0), inside);
            }
            commit_copies();
            await_copies<0>();
        }
        __syncthreads();
        tile.template multiply<true, FORWARD, true>(at, shared, min(total - k0, STEP), false);
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
            store16(tile + A::slot(r), *(const uint4 *)values);
        }
        before += p.lanes;
    }
};

/// Gathered x of few channels: the right operand.
template <class Tile> struct SourceFew {
    using T = typename Tile::T;
    using B = Share<Tile, Tile::BN>;
    static constexpr int PIXELS = DEPTH<T>, EACH = 4 / sizeof(T);
    // A thread builds one chunk of the same few pixels in every tile.
    static_assert(PIXELS / EACH * B::CHUNKS % Tile::THREADS == 0 && Tile::THREADS % (PIXELS / EACH) == 0, "whole turns");
    /// Of the block's columns; then pixels as in GradientFew.
    Term *terms;
    T *images;
    int room, half, next, before;
    PixelWalk walks[EACH];
    PixelStep step;

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
#pragma unroll
        for (int r = 0; r < EACH; r++)
            walks[r].start(p, lane * PIXELS + threadIdx.x % (PIXELS / EACH) * EACH + r);
        step.start(p, p.lanes * PIXELS);
    }

    INLINE Range range(const ConvOuter &p, int tile) const {
        return sources_of(p.down, p.along, p.enlarge, p.x_channels, p.pixels, tile * PIXELS, PIXELS);
    }

    INLINE void look_ahead(const ConvOuter &p) {
        if (next < p.tiles) {
            range(p, next).template bring<T, Tile::THREADS>(shared_address(images + half), (const T *)p.x,
                                                            x_len(p.down, p.along, p.enlarge, p.x_channels, p.images));
        }
        next += p.lanes;
        half = room - half;
    }

    INLINE void fetch(const ConvOuter &p, unsigned tile) {
        const T *image = images + half - range(p, before).template first<T>();
        auto slot = [&](int row, int chunk) {
            return tile + Tile::BM * ROW_BYTES + row * B::PITCH + place<Tile::ORDER, B::CHUNKS>(row, chunk) * 16;
        };
        build_rows<T, PIXELS, Tile::THREADS>(B::CHUNKS, slot, [&](int, int r, int chunk, int e) {
            Term term = terms[chunk * CHUNK<T> + e];
            int pixel = term.never ? -1 : walks[r].source(p, term.offset >> 16, (short)term.offset);
            return pixel < 0 ? (T)0.0f : image[pixel * p.x_channels + term.channel];
        });
#pragma unroll
        for (int r = 0; r < EACH; r++) walks[r].move(p, step);
        before += p.lanes;
    }
};

template <class Tile> using FewInputs = Apart<Tile, GradientColumns<Tile>, SourceFew<Tile>>;
template <class Tile> using FewOutputs = Apart<Tile, GradientFew<Tile>, SourceColumns<Tile>>;
