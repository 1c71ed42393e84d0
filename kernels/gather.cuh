// The forward pass and the backward pass to the data; see matmul.cuh.
#pragma once
#include "tiles.cuh"
#include <type_traits>

/// Source position of result i at the k-th tap; -1 where it is padding.
INLINE int source_of(const ConvAxis &a, int i, int k) {
    int at = a.scale * i + a.shift + k * a.shift_step;
    return at >= 0 && at < a.source ? at : -1;
}

/// A gathering pass to the positions of one residue.
struct Gathered {
    const ConvGather &all;
    const ConvAxis &down, &along;
    int pixels;

    /// Every residue (y, x) has its blocks; going forward there is one. The axes of one of
    /// several lie in shared memory, where they take no registers.
    template <bool FORWARD> static INLINE Gathered of(const ConvGather &all, int residue) {
        if (FORWARD) return {all, all.down[0], all.along[0], all.images * all.down[0].count * all.along[0].count};
        constexpr int WORDS = sizeof(ConvAxis) / 4;
        __shared__ ConvAxis axes[2];
        if (threadIdx.x < 2 * WORDS) {
            const ConvAxis &down = all.down[residue / all.residues_along];
            const ConvAxis &from = threadIdx.x < WORDS ? down : all.along[residue % all.residues_along];
            ((int *)axes)[threadIdx.x] = ((const int *)&from)[threadIdx.x % WORDS];
        }
        __syncthreads();
        return {all, axes[0], axes[1], all.images * axes[0].count * axes[1].count};
    }
    INLINE const ConvGather *operator->() const { return &all; }
};

/// Where the walk along a gathering reduction stands. Tiles never straddle a tap, nor the
/// border between the two tensors of a concatenation.
struct Walk {
    int tap_y, tap_x;
    /// Channel in x (0) or x2 (1), and which.
    int channel, tensor;

    /// Tiles of STEP channels of the first tensor, and of both.
    template <int STEP> static INLINE int first_tiles(const Gathered &p) {
        return (p->reduced - p->x2_channels + STEP - 1) / STEP;
    }
    template <int STEP> static INLINE int tiles(const Gathered &p) {
        return first_tiles<STEP>(p) + (p->x2_channels + STEP - 1) / STEP;
    }

    template <int STEP> INLINE void start(const Gathered &p, int tile) {
        int first = first_tiles<STEP>(p), per_tap = tiles<STEP>(p);
        int tap = tile / per_tap, rest = tile % per_tap;
        tap_y = tap / p.along.taps;
        tap_x = tap % p.along.taps;
        tensor = rest >= first;
        channel = (rest - (tensor ? first : 0)) * STEP;
    }

    INLINE int length(const Gathered &p) const {
        return tensor ? p->x2_channels : p->reduced - p->x2_channels;
    }

    /// Goes on to the next tensor or tap.
    INLINE void next(const Gathered &p) {
        channel = 0;
        if (tensor == 0 && p->x2_channels > 0) {
            tensor = 1;
            return;
        }
        tensor = 0;
        if (++tap_x == p.along.taps) {
            tap_x = 0;
            tap_y++;
        }
    }

    /// Row of the weight's [kernel_taps].
    INLINE int tap(const Gathered &p) const {
        return (p.down.tap + tap_y * p.down.tap_step) * p->kernel_width + p.along.tap +
               tap_x * p.along.tap_step;
    }
};

/// Where chunk threadIdx.x % 8 of a thread's i-th row lies in a [row][k] tile.
template <int THREADS, int SWIZZLE> INLINE unsigned row_slot(unsigned tile, int i) {
    int row = threadIdx.x / 8 + i * (THREADS / 8);
    return tile + row * ROW_BYTES + ((threadIdx.x % 8) ^ (row >> SWIZZLE & 7)) * 16;
}

/// The same from the slot of row 0: rows lie a multiple of eight permutations apart, or
/// (f32, eight rows a step) their permutation is that of the row before with two bits changed.
template <int THREADS, int SWIZZLE> INLINE unsigned next_slot(unsigned first, int i) {
    constexpr int STEP = THREADS / 8;
    return (first ^ (i * STEP >> SWIZZLE & 7) * 16) + i * STEP * ROW_BYTES;
}

/// Rows of gathered x, the left operand of `gather`: 16 bytes never straddle a pixel.
/// Each thread has one chunk of every STEP-th row.
template <typename T, int ROWS, int THREADS, int SWIZZLE> struct GatheredRows {
    static constexpr int STEP = THREADS / 8, PASSES = ROWS / STEP;
    static_assert(ROWS % STEP == 0 && PASSES <= 32, "whole passes");
    /// First pixel of the row's image, and the position it reads at tap (0, 0) as two
    /// signed halves; far outside for a row that does not exist.
    int image[PASSES], corner[PASSES];
    /// Where the pixel of x lies that the current tap reads, in 16 bytes, and a bit a row: whether
    /// it is inside.
    int pixel[PASSES];
    unsigned inside;
    const char *from;
    /// Of the first row, in a tile.
    unsigned slot;

    INLINE void start(const Gathered &p, int first_row) {
        slot = row_slot<THREADS, SWIZZLE>(0, 0);
        keep(slot);
        int area = p.down.count * p.along.count;
        int size = (p.down.source >> p->enlarge) * (p.along.source >> p->enlarge);
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            int row = first_row + threadIdx.x / 8 + i * STEP, at = row % area;
            int y = p.down.scale * (at / p.along.count) + p.down.shift;
            int x = p.along.scale * (at % p.along.count) + p.along.shift;
            image[i] = row / area * size;
            corner[i] = row < p.pixels ? y << 16 | (x & 0xffff) : 0x80008000;
        }
    }

    /// Turns to a tap and tensor, from the walk's channel on.
    INLINE void find(const Gathered &p, const Walk &walk, int group) {
        int channels = walk.tensor ? p->x2_channels : p->x_channels;
        int pitch = channels / CHUNK<T>;
        from = (const char *)(walk.tensor ? p->x2 : p->x) +
               (group * p->reduced + walk.channel + threadIdx.x % 8 * CHUNK<T>) * sizeof(T);
        int width = p.along.source >> p->enlarge;
        inside = 0;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            int y = (corner[i] >> 16) + walk.tap_y * p.down.shift_step;
            int x = (short)corner[i] + walk.tap_x * p.along.shift_step;
            bool is_inside = (unsigned)y < (unsigned)p.down.source && (unsigned)x < (unsigned)p.along.source;
            pixel[i] = is_inside ? (image[i] + (y >> p->enlarge) * width + (x >> p->enlarge)) * pitch : 0;
            inside |= is_inside ? 1u << i : 0u;
        }
    }

    /// The next tile, of which `terms` channels are left.
    INLINE void fetch(unsigned tile, int terms) {
        unsigned now = threadIdx.x % 8 * CHUNK<T> < terms ? inside : 0u;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            // Seen anew in every turn, else the compiler widens it once and for all.
            keep(pixel[i]);
            copy16(next_slot<THREADS, SWIZZLE>(tile + slot, i), from + (Len)pixel[i] * 16, now & 1u << i);
        }
        from += ROW_BYTES;
    }
};

/// Rows of the forward weight: the right operand of `gather` where columns are outputs.
template <typename T, int ROWS, int THREADS, int SWIZZLE> struct WeightRows {
    static constexpr int STEP = THREADS / 8, PASSES = (ROWS + STEP - 1) / STEP;
    unsigned inside, slot;
    const char *from;
    int pitch;

    INLINE void start(const Gathered &p, int first) {
        slot = row_slot<THREADS, SWIZZLE>(0, 0);
        keep(slot);
        pitch = p->kernel_taps * p->reduced * (int)sizeof(T);
        inside = 0;
#pragma unroll
        for (int i = 0; i < PASSES; i++)
            inside |= first + (int)threadIdx.x / 8 + i * STEP < p->columns ? 1u << i : 0u;
    }

    INLINE void find(const Gathered &p, const Walk &walk, int group, int first) {
        int k = walk.tap(p) * p->reduced + walk.channel + (walk.tensor ? p->x_channels : 0);
        from = (const char *)p->weight + (k + threadIdx.x % 8 * CHUNK<T>) * sizeof(T) +
               (Len)(group * p->columns + first + threadIdx.x / 8) * pitch;
    }

    INLINE void fetch(unsigned tile, int terms) {
        unsigned now = threadIdx.x % 8 * CHUNK<T> < terms ? inside : 0u;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            if (ROWS % STEP != 0 && threadIdx.x / 8 + i * STEP >= ROWS) break;
            copy16(next_slot<THREADS, SWIZZLE>(tile + slot, i), from + (Len)(i * STEP) * pitch, now & 1u << i);
        }
        from += ROW_BYTES;
    }
};

/// The weight with the reduction across its rows: the right operand of `gather` where
/// columns are inputs. [k][COLUMNS].
template <typename T, int COLUMNS, int THREADS, Order ORDER> struct WeightColumns {
    static constexpr int CHUNKS = COLUMNS / CHUNK<T>, STEP = THREADS / CHUNKS;
    static_assert(THREADS % CHUNKS == 0 && DEPTH<T> % STEP == 0, "whole passes");
    /// Of the thread's rows in a tile; past all of them where its column does not exist.
    int first_row;
    unsigned slot;
    const char *from;
    int pitch;

    INLINE void start(const Gathered &p, int first) {
        int row = threadIdx.x / CHUNKS;
        slot = row * (COLUMNS * (int)sizeof(T)) + place<ORDER, CHUNKS>(row, threadIdx.x % CHUNKS) * 16;
        keep(slot);
        pitch = p->kernel_taps * p->columns * (int)sizeof(T);
        first_row = first + (int)threadIdx.x % CHUNKS * CHUNK<T> < p->columns ? row : 1 << 30;
    }

    INLINE void find(const Gathered &p, const Walk &walk, int group, int first) {
        int row = group * p->reduced + walk.channel + threadIdx.x / CHUNKS;
        from = (const char *)p->weight + (Len)row * pitch +
               (walk.tap(p) * p->columns + first + threadIdx.x % CHUNKS * CHUNK<T>) * sizeof(T);
    }

    INLINE void fetch(unsigned tile, int terms) {
        int left = terms - first_row;
#pragma unroll
        for (int i = 0; i < DEPTH<T> / STEP; i++) {
            // Permutations are linear: that of a sum without carries is the sum of theirs.
            unsigned at = (tile + slot ^ place<ORDER, CHUNKS>(i * STEP, 0) * 16) + i * STEP * (COLUMNS * (int)sizeof(T));
            copy16(at, from + (Len)(i * STEP) * pitch, i * STEP < left);
        }
        from += (Len)DEPTH<T> * pitch;
    }
};

/// The same where 16 bytes straddle rows: few inputs. The rows of the group are brought to
/// shared memory as they are, once, and the tiles built from there.
template <typename T, int COLUMNS, int THREADS, Order ORDER> struct WeightNarrow {
    static constexpr int CHUNKS = COLUMNS / CHUNK<T>;
    const T *rows, *from;
    int left, pitch;

    INLINE void start(const Gathered &p, int first, int group, unsigned char *raw) {
        left = p->columns - first;
        pitch = p->kernel_taps * p->columns;
        int len = p->reduced * pitch;
        Range range = {group * len, (group + 1) * len};
        rows = (const T *)raw + (range.from - range.first<T>()) + first;
        range.bring<T, THREADS>(shared_address(raw), (const T *)p->weight, p->groups * len);
        commit_copies();
    }

    INLINE void find(const Gathered &p, const Walk &walk, int, int) {
        from = rows + walk.channel * pitch + walk.tap(p) * p->columns;
    }

    INLINE void fetch(unsigned tile, int terms) {
        auto slot = [&](int k, int chunk) {
            return tile + k * (COLUMNS * (int)sizeof(T)) + place<ORDER, CHUNKS>(k, chunk) * 16;
        };
        build_rows<T, DEPTH<T>, THREADS>(CHUNKS, slot, [&](int first, int r, int chunk, int e) {
            int k = first + r, column = chunk * CHUNK<T> + e;
            return k < terms && column < left ? from[k * pitch + column] : (T)0.0f;
        });
        from += DEPTH<T> * pitch;
    }
};

/// Both operands element by element, for any number of channels; k counts (tap, channel).
template <class Tile, bool FORWARD> struct Scattered {
    using T = typename Tile::T;
    static constexpr int STEP = Tile::THREADS / 8, PASSES = Tile::BM / STEP;
    int image[PASSES], y[PASSES], x[PASSES];

    INLINE void start(const Gathered &p, int first_row) {
        int area = p.down.count * p.along.count;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            int row = first_row + threadIdx.x / 8 + i * STEP;
            image[i] = row < p.pixels ? row / area : -1;
            y[i] = row % area / p.along.count;
            x[i] = row % p.along.count;
        }
    }

    INLINE void fetch(const Gathered &p, int k0, int group, int first, unsigned left, unsigned right) const {
        int height = p.down.source >> p->enlarge, width = p.along.source >> p->enlarge;
        int total = p.down.taps * p.along.taps * p->reduced;
#pragma unroll 1
        for (int e = 0; e < CHUNK<T>; e++) {
            int k = k0 + threadIdx.x % 8 * CHUNK<T> + e;
            int tap = k / p->reduced, channel = group * p->reduced + k % p->reduced;
            bool second = channel >= p->x_channels;
            int pitch = second ? p->x2_channels : p->x_channels;
            const T *from = (const T *)(second ? p->x2 : p->x) + (second ? channel - p->x_channels : channel);
#pragma unroll
            for (int i = 0; i < PASSES; i++) {
                int sy = source_of(p.down, y[i], tap / p.along.taps);
                int sx = source_of(p.along, x[i], tap % p.along.taps);
                bool inside = k < total && sy >= 0 && sx >= 0 && image[i] >= 0;
                Len at = (image[i] * height + (sy >> p->enlarge)) * width + (sx >> p->enlarge);
                unsigned slot = row_slot<Tile::THREADS, Tile::SWIZZLE_A>(left, i) + e * sizeof(T);
                copy_element(slot, inside ? from + at * pitch : (const T *)p->x, inside);
            }
        }
        const T *weight = (const T *)p->weight;
        for (int i = threadIdx.x; i < Tile::BN * DEPTH<T>; i += Tile::THREADS) {
            // Neighbouring threads read neighbouring elements.
            int at_k = FORWARD ? i % DEPTH<T> : i / Tile::BN, row = FORWARD ? i / DEPTH<T> : i % Tile::BN;
            int k = k0 + at_k, tap = k / p->reduced, channel = k % p->reduced;
            Walk walk = {tap / p.along.taps, tap % p.along.taps, 0, 0};
            bool inside = k < total && first + row < p->columns;
            int out = group * (FORWARD ? p->columns : p->reduced) + (FORWARD ? first + row : channel);
            int in = FORWARD ? channel : first + row;
            Len at = ((Len)out * p->kernel_taps + walk.tap(p)) * (FORWARD ? p->reduced : p->columns) + in;
            int chunk = (FORWARD ? at_k : row) / CHUNK<T>, element = (FORWARD ? at_k : row) % CHUNK<T>;
            unsigned slot = FORWARD ? row * ROW_BYTES + (chunk ^ (row >> Tile::SWIZZLE_B & 7)) * 16
                                    : at_k * (Tile::BN * (int)sizeof(T)) +
                                          place<Tile::ORDER, Tile::BN / CHUNK<T>>(at_k, chunk) * 16;
            copy_element(right + slot + element * sizeof(T), weight + (inside ? at : 0), inside);
        }
    }
};

/// What 16 bytes may straddle: no pixel and no row of the weight, rows of the weight (few
/// inputs, backward), or anything.
enum Reading { ALIGNED, NARROW, SCATTERED };

/// Adds what is to be added to a tile of a gathering pass and stores it.
template <class Tile> INLINE void store_gathered(const Gathered &p, const Tile &tile, unsigned char *shared, int group, int lane) {
    using T = typename Tile::T;
    int first_row = blockIdx.x * Tile::BM, first_column = blockIdx.y * Tile::BN;
    int channels = p->groups * p->columns, area = p.down.count * p.along.count;
    bool dense = p.down.step == 1 && p.along.step == 1;
    int rows = p.pixels - first_row, columns = p->columns - first_column;
    auto add_up = [&](int row, int column, Values<T> &values) {
        int count = min(columns - column, CHUNK<T>);
        int channel = group * p->columns + first_column + column;
        Len pixel = first_row + row;
        int image = 0;
        if (!dense || p->per_image) {
            int at = (int)pixel % area;
            image = (int)pixel / area;
            int y = p.down.first + p.down.step * (at / p.along.count);
            int x = p.along.first + p.along.step * (at % p.along.count);
            pixel = ((Len)image * p.down.length + y) * p.along.length + x;
        }
        Len at = pixel * channels + channel;
        if (p->bias) values.add(p->bias + channel, count);
        if (p->per_image) values.add((const T *)p->per_image + (Len)image * channels + channel, count);
        if (p->residual) values.add((const T *)p->residual + at, count);
        values.write((T *)p->y + at, count, p->add);
    };
    if constexpr (Tile::SPLITS) {
        if (p->partial) {
            // Only passes whose results lie densely are split.
            Len size = (Len)p.pixels * channels;
            // Where four of the values at (row, column) lie. Two threads that have eight each
            // side by side change places with halves, so that both meet whole sectors.
            auto partial = [&](int row, int column, int half) {
                bool pair = CHUNK<T> == 8 && (column & -16) + 16 <= columns;
                int at = pair ? (column & -16) + half * 8 + (column & 8) / 2 : column + half * 4;
                return p->partial + (Len)(first_row + row) * channels + group * p->columns + first_column + at;
            };
            give<Tile, T>(tile, (float *)shared, rows, columns, [&](int row, int column, Values<T> &values) {
#pragma unroll
                for (int h = 0; h < CHUNK<T> / GROUP; h++) {
                    Group g = {values.v[4 * h], values.v[4 * h + 1], values.v[4 * h + 2], values.v[4 * h + 3]};
                    store(partial(row, column, h) + lane * size, g, min(columns - column - 4 * h, GROUP));
                }
            });
            if (!is_last_block(p->counters + tile_number(group), p->lanes)) return;
            each_piece<Tile, T>([&](int row, int column) {
                if (row >= rows || column >= columns) return;
                Values<T> values;
                values.clear();
                for (int l = 0; l < p->lanes; l++) {
#pragma unroll
                    for (int h = 0; h < CHUNK<T> / GROUP; h++) {
                        Group g = load(partial(row, column, h) + l * size, min(columns - column - 4 * h, GROUP));
#pragma unroll
                        for (int e = 0; e < GROUP; e++) values.v[4 * h + e] += g[e];
                    }
                }
                add_up(row, column, values);
            });
            return;
        }
    }
    give<Tile, T>(tile, (float *)shared, rows, columns, add_up);
}

/// One tile of a gathering pass. Grid: row tiles, column tiles, groups x lanes (or x residues).
/// Where the lanes' sums do not lie apart, the block takes all lanes in turn.
template <class Tile, bool FORWARD, Reading READING = ALIGNED> INLINE void gather(const ConvGather &all) {
    using T = typename Tile::T;
    constexpr int STEP = DEPTH<T>;
    extern __shared__ __align__(128) unsigned char shared[];
    int first_row = blockIdx.x * Tile::BM, first_column = blockIdx.y * Tile::BN;
    int group = blockIdx.z % all.groups, rest = blockIdx.z / all.groups;
    // A strided pass has one lane.
    bool apart = Tile::SPLITS && all.partial;
    Gathered p = Gathered::of<FORWARD>(all, apart ? 0 : rest);
    if (!FORWARD && first_row >= p.pixels) return;
    int taps = p.down.taps * p.along.taps, total = taps * p->reduced;
    int tiles = READING == SCATTERED ? (total + STEP - 1) / STEP : taps * Walk::tiles<STEP>(p);
    float *kept = (float *)(shared + STAGES * STAGE_BYTES<Tile>);

    Tile tile;
    tile.clear();
    auto at = Tile::template start<true, FORWARD>();
    int stage = 0, terms = 0;
    // Tile t is on its way into `stage` while t - 1 is multiplied; the last turn only
    // multiplies.
    auto turn = [&](int t, int from, int to, int arriving, auto fetch) {
        await_copies<0>();
        __syncthreads();
        unsigned left = shared_address(shared) + stage * STAGE_BYTES<Tile>;
        if (t < to) fetch(left, left + Tile::BM * ROW_BYTES);
        commit_copies();
        stage ^= 1;
        if (t > from) {
            tile.template multiply<true, FORWARD>(at, shared + stage * STAGE_BYTES<Tile>, terms, false);
        }
        terms = arriving;
    };
    // Calls reduce(from, to) for the block's lanes.
    auto each_lane = [&](auto reduce) {
        if constexpr (Tile::SPLITS) {
            int first = apart ? rest : 0, last = apart ? rest : p->lanes - 1;
#pragma unroll 1
            for (int l = first;; l++) {
                reduce((int)((Len)tiles * l / p->lanes), (int)((Len)tiles * (l + 1) / p->lanes));
                if (first == last) break;
                tile.fold(kept, l == first);
                if (l == last) break;
                tile.clear();
            }
        } else {
            reduce(0, tiles);
        }
    };
    if constexpr (READING != SCATTERED) {
        GatheredRows<T, Tile::BM, Tile::THREADS, Tile::SWIZZLE_A> rows;
        using Columns = std::conditional_t<READING == NARROW, WeightNarrow<T, Tile::BN, Tile::THREADS, Tile::ORDER>,
                                           WeightColumns<T, Tile::BN, Tile::THREADS, Tile::ORDER>>;
        std::conditional_t<FORWARD, WeightRows<T, Tile::BN, Tile::THREADS, Tile::SWIZZLE_B>, Columns> weight;
        rows.start(p, first_row);
        if constexpr (READING == NARROW) {
            bool folds = p->lanes > 1 && !apart;
            weight.start(p, first_column, group, (unsigned char *)(kept + (folds ? Tile::BM * Tile::BN : 0)));
        } else {
            weight.start(p, first_column);
        }
        each_lane([&](int from, int to) {
            Walk walk;
            walk.start<STEP>(p, from);
#pragma unroll 1
            for (int t = from; t <= to;) {
                rows.find(p, walk, group);
                weight.find(p, walk, group, first_column);
                int left = walk.length(p) - walk.channel;
                int end = t < to ? min(to, t + (left + STEP - 1) / STEP) : t + 1;
#pragma unroll 1
                for (; t < end; t++) {
                    turn(t, from, to, min(left, STEP), [&](unsigned a, unsigned b) {
                        rows.fetch(a, left);
                        weight.fetch(b, left);
                    });
                    left -= STEP;
                }
                walk.next(p);
            }
        });
    } else {
        Scattered<Tile, FORWARD> both;
        both.start(p, first_row);
        each_lane([&](int from, int to) {
#pragma unroll 1
            for (int t = from; t <= to; t++) {
                turn(t, from, to, min(total - t * STEP, STEP), [&](unsigned a, unsigned b) {
                    both.fetch(p, t * STEP, group, first_column, a, b);
                });
            }
        });
    }
    store_gathered(p, tile, shared, group, apart ? rest : 0);
}
