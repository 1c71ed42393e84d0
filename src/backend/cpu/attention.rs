//! Attention in blocks (Dao et al. 2022): the scores of a few queries against
//! [`BLOCK`] keys at a time, softmax carried along, nothing of size s_q x s_kv.
//!
//! `scores = q k^T` wants keys along a vector: a first pass packs k (and v, for
//! the backward's `d_o v^T`) into panels of [`PANEL`] keys, `[head_dim][PANEL]`,
//! the last one filled up with zeros. What a product goes over row by row is
//! packed into panels of [`PANEL`] channels, `[tokens][PANEL]`: in memory the rows
//! of a head lie a power of two apart and would fall into few sets of the
//! cache. A row's result depends on the blocks of keys alone, which are fixed,
//! so queries may be split over tasks at will.
#![allow(unsafe_code)] // Tasks write disjoint rows of one slice.

use std::ops::Range;

use super::isa::{Isa, multiversion};
use super::math::exp;
use super::pointwise::{Output, for_chunks};
use super::pool::{Parts, Pool};
use super::tile::{Matrix, Target, multiply};
use crate::ops::attention::Attention;
use crate::plan::Mode;

/// Keys, or channels, of a packed panel.
const PANEL: usize = 32;
/// Keys of a block of scores.
const BLOCK: usize = 64;
/// Most queries of a block of scores: 16 KiB on the stack.
const QUERIES: usize = 64;

/// Scores, probabilities or their gradients: `[QUERIES][BLOCK]`, aligned to
/// vectors.
#[repr(align(64))]
struct Scores([f32; QUERIES * BLOCK]);

/// Offsets of the head's part of q, k, v, o in memory.
#[derive(Clone, Copy)]
struct Head {
    /// Index among all images' heads.
    index: usize,
    /// First element of the head in q and o.
    q: usize,
    /// First element of the head in k and v.
    kv: usize,
    /// From token to token.
    row: usize,
}

impl Head {
    fn new(op: &Attention, index: usize) -> Self {
        let (image, head) = (index / op.heads, index % op.heads);
        let row = op.heads * op.head_dim;
        Head {
            index,
            q: image * op.s_q * row + head * op.head_dim,
            kv: image * op.s_kv * row + head * op.head_dim,
            row,
        }
    }

    /// Tokens `from ..` of a tensor whose head starts at `start`.
    fn tokens<'a>(&self, data: &'a [f32], start: usize, from: usize) -> Matrix<'a> {
        Matrix { data, start: start + from * self.row, row: self.row, column: 1 }
    }
}

/// Floats of one head's keys in panels of keys.
fn packed_len(op: &Attention) -> usize {
    op.s_kv.div_ceil(PANEL) * PANEL * op.head_dim
}

/// Floats of scratch for the forward pass: k in panels of keys, v in panels of
/// channels.
pub fn workspace_len(op: &Attention) -> usize {
    op.n * op.heads * (packed_len(op) + op.s_kv * op.head_dim)
}

/// Floats of scratch for the backward pass: k and v in panels of keys; k, q and
/// d_o in panels of channels; a number for each query.
pub fn backward_workspace_len(op: &Attention) -> usize {
    let rows = op.s_kv + 2 * op.s_q;
    op.n * op.heads * (2 * packed_len(op) + rows * op.head_dim + op.s_q)
}

/// Splits scratch into parts of the given lengths.
fn split<const K: usize>(mut scratch: &mut [f32], lengths: [usize; K]) -> [&mut [f32]; K] {
    lengths.map(|len| {
        let (part, rest) = std::mem::take(&mut scratch).split_at_mut(len);
        scratch = rest;
        part
    })
}

/// Packs the rows of every head of x `[n, tokens, heads, head_dim]` into panels
/// of channels: head after head, `[head_dim / PANEL][tokens][PANEL]`, the last
/// panel as narrow as what is left.
fn pack_rows(pool: &Pool, op: &Attention, x: &[f32], tokens: usize, packed: &mut [f32]) {
    let (dim, row) = (op.head_dim, op.heads * op.head_dim);
    let parts = Parts::new(packed);
    pool.run(op.n * op.heads, &|task| {
        let start = task / op.heads * tokens * row + task % op.heads * dim;
        // SAFETY: each task has its own head.
        let packed = unsafe { parts.part(task * tokens * dim, tokens * dim) };
        for first in (0..dim).step_by(PANEL) {
            let width = PANEL.min(dim - first);
            let panel = &mut packed[first * tokens..][..width * tokens];
            for (token, to) in panel.chunks_exact_mut(width).enumerate() {
                to.copy_from_slice(&x[start + token * row + first..][..width]);
            }
        }
    });
}

/// A head's rows in panels of channels.
#[derive(Clone, Copy)]
struct Panels<'a> {
    packed: &'a [f32],
    tokens: usize,
    dim: usize,
}

impl<'a> Panels<'a> {
    /// Those of a head among all heads' panels.
    fn of(op: &Attention, packed: &'a [f32], tokens: usize, head: Head) -> Self {
        let len = tokens * op.head_dim;
        let packed = &packed[head.index * len..(head.index + 1) * len];
        Panels { packed, tokens, dim: op.head_dim }
    }

    /// `C = A B` or `C += A B` with B the `count` rows from `first` on, and C of
    /// m rows, each `head_dim` long.
    ///
    /// # Safety
    /// As [`multiply`].
    unsafe fn multiply(
        &self,
        isa: Isa,
        m: usize,
        a: Matrix,
        [first, count]: [usize; 2],
        c: Target,
        accumulate: bool,
    ) {
        for channel in (0..self.dim).step_by(PANEL) {
            let width = PANEL.min(self.dim - channel);
            let start = channel * self.tokens + first * width;
            let b = Matrix { data: self.packed, start, row: width, column: 1 };
            // SAFETY: the channels of a panel are part of C's rows.
            unsafe {
                let c = Target { start: c.start.add(channel), row: c.row };
                multiply(isa, [m, width, count], a, b, c, accumulate);
            }
        }
    }
}

/// Packs k or v `[n, s_kv, heads, head_dim]` into panels.
fn pack(pool: &Pool, op: &Attention, x: &[f32], packed: &mut [f32]) {
    let panels = op.s_kv.div_ceil(PANEL);
    let parts = Parts::new(packed);
    pool.run(op.n * op.heads * panels, &|task| {
        let (head, first) = (Head::new(op, task / panels), task % panels * PANEL);
        let len = PANEL * op.head_dim;
        // SAFETY: each task has its own panel.
        let panel = unsafe { parts.part(task * len, len) };
        let keys = PANEL.min(op.s_kv - first);
        for key in 0..keys {
            let from = head.kv + (first + key) * head.row;
            let row = &x[from..from + op.head_dim];
            for (column, &v) in panel.chunks_exact_mut(PANEL).zip(row) {
                column[key] = v;
            }
        }
        for column in panel.chunks_exact_mut(PANEL) {
            column[keys..].fill(0.0);
        }
    });
}

/// One block of keys of a head and its panels.
#[derive(Clone, Copy)]
struct Keys<'a> {
    packed: &'a [f32],
    first: usize,
    count: usize,
}

impl<'a> Keys<'a> {
    /// The blocks of one head, whose panels are `packed`.
    fn blocks(op: &Attention, packed: &'a [f32]) -> impl Iterator<Item = Keys<'a>> + use<'a> {
        let (s_kv, dim) = (op.s_kv, op.head_dim);
        (0..s_kv).step_by(BLOCK).map(move |first| Keys {
            packed: &packed[first * dim..],
            first,
            count: BLOCK.min(s_kv - first),
        })
    }

    /// Columns of scores, whole panels.
    fn width(&self) -> usize {
        self.count.div_ceil(PANEL) * PANEL
    }

    /// `scores = x y^T` for `queries` rows of x and the keys of this block.
    fn products(&self, isa: Isa, dim: usize, x: Matrix, queries: usize, scores: &mut Scores) {
        assert!(queries <= QUERIES && self.width() <= BLOCK);
        for panel in 0..self.width() / PANEL {
            let data = self.packed;
            let y = Matrix { data, start: panel * PANEL * dim, row: PANEL, column: 1 };
            let start = scores.0[panel * PANEL..].as_mut_ptr();
            let target = Target { start, row: BLOCK };
            // SAFETY: at most QUERIES rows of scores, which is borrowed exclusively.
            unsafe { multiply(isa, [queries, PANEL, dim], x, y, target, false) };
        }
    }
}

/// o and lse.
#[allow(clippy::too_many_arguments)]
pub fn attention(
    pool: &Pool,
    op: &Attention,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    o: &mut [f32],
    lse: &mut [f32],
    workspace: &mut [f32],
) {
    let isa = pool.isa();
    let heads = op.n * op.heads;
    let lengths = [heads * packed_len(op), heads * op.s_kv * op.head_dim];
    let [packed, packed_v] = split(workspace, lengths);
    pack(pool, op, k, packed);
    pack_rows(pool, op, v, op.s_kv, packed_v);
    let (packed, packed_v) = (&*packed, &*packed_v);
    let mut queries = QUERIES;
    while queries > 8 && heads * op.s_q.div_ceil(queries) < 2 * pool.threads() {
        queries /= 2;
    }
    let blocks = op.s_q.div_ceil(queries);
    let (o, lse) = (Parts::new(o), Parts::new(lse));
    pool.run(heads * blocks, &|task| {
        let (head, first) = (Head::new(op, task / blocks), task % blocks * queries);
        let queries = queries.min(op.s_q - first);
        let dim = op.head_dim;
        let start = head.q + first * head.row;
        // SAFETY: the block's rows of lse are this task's own.
        let lse = unsafe { lse.part(head.index * op.s_q + first, queries) };
        let row_o = |i: usize| {
            // SAFETY: so are its rows of o; one slice of them is alive at a time.
            unsafe { o.part(start + i * head.row, dim) }
        };
        let mut scores = Scores([0.0; QUERIES * BLOCK]);
        let (mut largest, mut sums) = ([f32::NEG_INFINITY; QUERIES], [0f32; QUERIES]);
        let packed = &packed[head.index * packed_len(op)..(head.index + 1) * packed_len(op)];
        let values = Panels::of(op, packed_v, op.s_kv, head);
        for keys in Keys::blocks(op, packed) {
            let rows = head.tokens(q, head.q, first);
            keys.products(isa, dim, rows, queries, &mut scores);
            for i in 0..queries {
                let row = &mut scores.0[i * BLOCK..i * BLOCK + keys.width()];
                let state = [&mut largest[i], &mut sums[i]];
                let correction = softmax_block(isa, row, keys.count, op.scale, state);
                if keys.first > 0 && correction != 1.0 {
                    scale_row(isa, row_o(i), correction);
                }
            }
            let probabilities = Matrix { data: &scores.0, start: 0, row: BLOCK, column: 1 };
            let start = o.strided(start, (queries - 1) * head.row + dim);
            let target = Target { start, row: head.row };
            let (rows, accumulate) = ([keys.first, keys.count], keys.first > 0);
            // SAFETY: the head's channels of the block's rows are this task's own.
            unsafe { values.multiply(isa, queries, probabilities, rows, target, accumulate) };
        }
        for i in 0..queries {
            scale_row(isa, row_o(i), 1.0 / sums[i]);
            lse[i] = (f64::from(largest[i]) + f64::from(sums[i]).ln()) as f32;
        }
    });
}

/// Lanes of a row's sums, fixed so that every path adds in the same order.
const LANES: usize = 16;

/// Adds up lanes pairwise.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = combine(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

multiversion! {
    /// Turns a row of scores, of which `count` are real, into probabilities
    /// relative to the largest score so far, adds them to the sum, and returns
    /// the factor that brings what was accumulated before to the new scale.
    fn softmax_block(
        isa: Isa, row: &mut [f32], count: usize, scale: f32, state: [&mut f32; 2],
    ) -> f32 {
        let [largest, sum] = state;
        row[count..].fill(f32::NEG_INFINITY);
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for block in row.chunks_exact_mut(LANES) {
            for (lane, score) in lanes.iter_mut().zip(block) {
                // A negative scale must not turn the filling into +infinity.
                let scaled = if *score == f32::NEG_INFINITY { *score } else { *score * scale };
                *score = scaled;
                *lane = larger(*lane, scaled);
            }
        }
        let before = *largest;
        let now = larger(before, fold(lanes, larger));
        let mut lanes = [0f32; LANES];
        for block in row.chunks_exact_mut(LANES) {
            for (lane, score) in lanes.iter_mut().zip(block) {
                *score = exp(*score - now);
                *lane += *score;
            }
        }
        let correction = if before == f32::NEG_INFINITY { 0.0 } else { exp(before - now) };
        *largest = now;
        *sum = sum.mul_add(correction, fold(lanes, |a, b| a + b));
        correction
    }
}

multiversion! {
    fn scale_row(isa: Isa, row: &mut [f32], factor: f32) {
        row.iter_mut().for_each(|v| *v *= factor);
    }
}

multiversion! {
    /// `sum x y`.
    fn dot(isa: Isa, x: &[f32], y: &[f32]) -> f32 {
        let mut lanes = [0f32; LANES];
        for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
            for (lane, (&x, &y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
                *lane = x.mul_add(y, *lane);
            }
        }
        fold(lanes, |a, b| a + b)
    }
}

multiversion! {
    /// From scores and `dP = d_o v^T`: probabilities `P = exp(scale s - lse)` and
    /// `dS = scale P (dP - delta)`, zero in what fills up the last panel.
    fn gradient_row(
        isa: Isa, scores: &mut [f32], d_scores: &mut [f32], count: usize, scale: f32, lse: f32,
        delta: f32,
    ) {
        for (p, d) in scores.iter_mut().zip(d_scores.iter_mut()) {
            *p = exp(p.mul_add(scale, -lse));
            *d = *p * (*d - delta) * scale;
        }
        scores[count..].fill(0.0);
        d_scores[count..].fill(0.0);
    }
}

/// What the backward pass reads.
pub struct Saved<'a> {
    /// As in the forward pass.
    pub q: &'a [f32],
    /// As in the forward pass.
    pub k: &'a [f32],
    /// As in the forward pass.
    pub v: &'a [f32],
    /// Result of the forward pass.
    pub o: &'a [f32],
    /// Result of the forward pass.
    pub lse: &'a [f32],
    /// Gradient by o.
    pub d_o: &'a [f32],
}

/// d_q, d_k, d_v; `None` skips one. A task takes a head: blocks of keys in
/// order, within each all blocks of queries, five products a pair of blocks;
/// or, where heads are few, a part of one.
pub fn attention_backward(
    pool: &Pool,
    op: &Attention,
    saved: &Saved,
    outputs: [Option<Output>; 3],
    workspace: &mut [f32],
) {
    let isa = pool.isa();
    let heads = op.n * op.heads;
    let (keys, dim) = (heads * packed_len(op), op.head_dim);
    let rows = [op.s_kv, op.s_q, op.s_q].map(|tokens| heads * tokens * dim);
    let lengths = [keys, keys, rows[0], rows[1], rows[2], heads * op.s_q];
    let [k_keys, v_keys, k, q, d_o, delta] = split(workspace, lengths);
    pack(pool, op, saved.k, k_keys);
    pack(pool, op, saved.v, v_keys);
    pack_rows(pool, op, saved.k, op.s_kv, k);
    pack_rows(pool, op, saved.q, op.s_q, q);
    pack_rows(pool, op, saved.d_o, op.s_q, d_o);
    let (k_keys, v_keys, k, q, d_o) = (&*k_keys, &*v_keys, &*k, &*q, &*d_o);
    let outputs = outputs.map(|o| o.map(|(d, mode)| (Parts::new(d), mode)));
    for_chunks(pool, delta, op.s_q, |from, delta| {
        let head = Head::new(op, from / op.s_q);
        for (i, delta) in delta.iter_mut().enumerate() {
            let at = head.q + i * head.row;
            *delta = dot(isa, &saved.o[at..at + dim], &saved.d_o[at..at + dim]);
        }
    });
    let delta = &*delta;
    // With too few heads for the threads, blocks of keys make d_k and d_v and
    // blocks of queries d_q: two products more, the same sums in the same order.
    let (blocks_k, blocks_q) = (op.s_kv.div_ceil(BLOCK), op.s_q.div_ceil(QUERIES));
    let whole = heads >= pool.threads();
    let parts = if whole { 1 } else { blocks_k + blocks_q };
    pool.run(heads * parts, &|task| {
        let (head, part) = (Head::new(op, task / parts), task % parts);
        let panels = head.index * packed_len(op)..(head.index + 1) * packed_len(op);
        let packed = Packed {
            k_keys: &k_keys[panels.clone()],
            v_keys: &v_keys[panels],
            k: Panels::of(op, k, op.s_kv, head),
            q: Panels::of(op, q, op.s_q, head),
            d_o: Panels::of(op, d_o, op.s_q, head),
            delta: &delta[head.index * op.s_q..(head.index + 1) * op.s_q],
        };
        let (all_k, all_q) = (0..blocks_k, 0..blocks_q);
        let [d_q, d_k, d_v] = outputs;
        let (blocks, outputs) = if whole {
            ([all_k, all_q], outputs)
        } else if part < blocks_k {
            ([part..part + 1, all_q], [None, d_k, d_v])
        } else {
            ([all_k, part - blocks_k..part - blocks_k + 1], [d_q, None, None])
        };
        if outputs.iter().any(Option::is_some) {
            head_backward(isa, op, head, saved, &packed, blocks, &outputs);
        }
    });
}

/// A head's operands of the backward pass, packed.
struct Packed<'a> {
    /// Panels of keys.
    k_keys: &'a [f32],
    /// Panels of keys.
    v_keys: &'a [f32],
    k: Panels<'a>,
    q: Panels<'a>,
    d_o: Panels<'a>,
    /// `sum d_o o` of each query.
    delta: &'a [f32],
}

/// Goes over the given blocks of keys and of queries of a head.
fn head_backward(
    isa: Isa,
    op: &Attention,
    head: Head,
    saved: &Saved,
    packed: &Packed,
    [blocks_k, blocks_q]: [Range<usize>; 2],
    [d_q, d_k, d_v]: &[Option<(Parts<f32>, Mode)>; 3],
) {
    let dim = op.head_dim;
    let mut scores = Scores([0.0; QUERIES * BLOCK]);
    let mut d_scores = Scores([0.0; QUERIES * BLOCK]);
    // Adds A B into m rows of an output, the first of them at `start`.
    let add = |output: &Option<(Parts<f32>, Mode)>,
               start: usize,
               m: usize,
               a: Matrix,
               b: &Panels,
               rows: [usize; 2],
               first: bool| {
        let Some((d, mode)) = output else { return };
        let start = d.strided(start, (m - 1) * head.row + dim);
        let target = Target { start, row: head.row };
        // SAFETY: the head's channels of these rows are this task's own.
        unsafe { b.multiply(isa, m, a, rows, target, !first || *mode == Mode::Add) };
    };
    let blocks = Keys::blocks(op, packed.k_keys).zip(Keys::blocks(op, packed.v_keys));
    for (keys, keys_of_v) in blocks.take(blocks_k.end).skip(blocks_k.start) {
        for first in blocks_q.clone().map(|block| block * QUERIES) {
            let queries = QUERIES.min(op.s_q - first);
            let rows_q = head.tokens(saved.q, head.q, first);
            let rows_d_o = head.tokens(saved.d_o, head.q, first);
            keys.products(isa, dim, rows_q, queries, &mut scores);
            keys_of_v.products(isa, dim, rows_d_o, queries, &mut d_scores);
            for i in 0..queries {
                let row = i * BLOCK..i * BLOCK + keys.width();
                let (s, d) = (&mut scores.0[row.clone()], &mut d_scores.0[row]);
                let lse = saved.lse[head.index * op.s_q + first + i];
                gradient_row(isa, s, d, keys.count, op.scale, lse, packed.delta[first + i]);
            }
            let upright = |s| Matrix { data: s, start: 0, row: BLOCK, column: 1 };
            let turned = |s| Matrix { data: s, start: 0, row: 1, column: BLOCK };
            let (p, d_s) = (&scores.0, &d_scores.0);
            let row_kv = head.kv + keys.first * head.row;
            let queried = [first, queries];
            add(d_v, row_kv, keys.count, turned(p), &packed.d_o, queried, first == 0);
            add(d_k, row_kv, keys.count, turned(d_s), &packed.q, queried, first == 0);
            let row_q = head.q + first * head.row;
            let rows = [keys.first, keys.count];
            add(d_q, row_q, queries, upright(d_s), &packed.k, rows, keys.first == 0);
        }
    }
}
