//! Attention in blocks (Dao et al. 2022): the scores of a few queries against
//! [`BLOCK`] keys at a time, softmax carried along, nothing of size s_q x s_kv.
//!
//! `scores = q k^T` wants keys along a vector: a first pass packs k (and v, for
//! the backward's `d_o v^T`) into panels of [`PANEL`] keys, `[head_dim][PANEL]`,
//! the last one filled up with zeros. All other products read q, k, v, d_o
//! where they lie. A row's result depends on the blocks of keys alone, which
//! are fixed, so queries may be split over tasks at will.
#![allow(unsafe_code)] // Tasks write disjoint rows of one slice.

use super::isa::{Isa, multiversion};
use super::math::exp;
use super::pointwise::Output;
use super::pool::{Parts, Pool};
use super::tile::{Matrix, Target, multiply};
use crate::ops::attention::Attention;
use crate::plan::Mode;

/// Keys of a packed panel.
const PANEL: usize = 32;
/// Keys of a block of scores.
const BLOCK: usize = 64;
/// Most queries of a block of scores: 16 KiB on the stack.
const QUERIES: usize = 64;

/// Scores, probabilities or their gradients: `[QUERIES][BLOCK]`.
type Scores = [f32; QUERIES * BLOCK];

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

/// Floats of one head's packed keys.
fn packed_len(op: &Attention) -> usize {
    op.s_kv.div_ceil(PANEL) * PANEL * op.head_dim
}

/// Floats of scratch for the forward pass: k in panels.
pub fn workspace_len(op: &Attention) -> usize {
    op.n * op.heads * packed_len(op)
}

/// Floats of scratch for the backward pass: k and v in panels.
pub fn backward_workspace_len(op: &Attention) -> usize {
    2 * workspace_len(op)
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
            let start = scores[panel * PANEL..].as_mut_ptr();
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
    let isa = Isa::detect();
    pack(pool, op, k, workspace);
    let packed = &*workspace;
    let heads = op.n * op.heads;
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
        let mut scores: Scores = [0.0; QUERIES * BLOCK];
        let (mut largest, mut sums) = ([f32::NEG_INFINITY; QUERIES], [0f32; QUERIES]);
        let packed = &packed[head.index * packed_len(op)..(head.index + 1) * packed_len(op)];
        for keys in Keys::blocks(op, packed) {
            let rows = head.tokens(q, head.q, first);
            keys.products(isa, dim, rows, queries, &mut scores);
            for i in 0..queries {
                let row = &mut scores[i * BLOCK..i * BLOCK + keys.width()];
                let state = [&mut largest[i], &mut sums[i]];
                let correction = softmax_block(isa, row, keys.count, op.scale, state);
                if keys.first > 0 && correction != 1.0 {
                    scale_row(isa, row_o(i), correction);
                }
            }
            let probabilities = Matrix { data: &scores, start: 0, row: BLOCK, column: 1 };
            let values = head.tokens(v, head.kv, keys.first);
            let start = o.strided(start, (queries - 1) * head.row + dim);
            let target = Target { start, row: head.row };
            let (sizes, accumulate) = ([queries, dim, keys.count], keys.first > 0);
            // SAFETY: the head's channels of the block's rows are this task's own.
            unsafe { multiply(isa, sizes, probabilities, values, target, accumulate) };
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
/// order, within each all blocks of queries, five products a pair of blocks.
pub fn attention_backward(
    pool: &Pool,
    op: &Attention,
    saved: &Saved,
    outputs: [Option<Output>; 3],
    workspace: &mut [f32],
) {
    let isa = Isa::detect();
    let (packed_k, packed_v) = workspace.split_at_mut(workspace_len(op));
    pack(pool, op, saved.k, packed_k);
    pack(pool, op, saved.v, packed_v);
    let (packed_k, packed_v) = (&*packed_k, &*packed_v);
    let outputs = outputs.map(|o| o.map(|(d, mode)| (Parts::new(d), mode)));
    pool.run(op.n * op.heads, &|task| {
        let head = Head::new(op, task);
        let panels = head.index * packed_len(op)..(head.index + 1) * packed_len(op);
        let (packed_k, packed_v) = (&packed_k[panels.clone()], &packed_v[panels]);
        head_backward(isa, op, head, saved, [packed_k, packed_v], &outputs);
    });
}

fn head_backward(
    isa: Isa,
    op: &Attention,
    head: Head,
    saved: &Saved,
    [packed_k, packed_v]: [&[f32]; 2],
    [d_q, d_k, d_v]: &[Option<(Parts<f32>, Mode)>; 3],
) {
    let dim = op.head_dim;
    let mut scores: Scores = [0.0; QUERIES * BLOCK];
    let mut d_scores: Scores = [0.0; QUERIES * BLOCK];
    // Adds A B into the rows `from ..` of an output.
    let add = |output: &Option<(Parts<f32>, Mode)>,
               start: usize,
               sizes: [usize; 3],
               a: Matrix,
               b: Matrix,
               first: bool| {
        let Some((d, mode)) = output else { return };
        let start = d.strided(start, (sizes[0] - 1) * head.row + dim);
        let target = Target { start, row: head.row };
        // SAFETY: the head's channels are this task's own.
        unsafe { multiply(isa, sizes, a, b, target, !first || *mode == Mode::Add) };
    };
    let blocks_k = Keys::blocks(op, packed_k);
    for (keys, keys_of_v) in blocks_k.zip(Keys::blocks(op, packed_v)) {
        for first in (0..op.s_q).step_by(QUERIES) {
            let queries = QUERIES.min(op.s_q - first);
            let rows_q = head.tokens(saved.q, head.q, first);
            let rows_d_o = head.tokens(saved.d_o, head.q, first);
            keys.products(isa, dim, rows_q, queries, &mut scores);
            keys_of_v.products(isa, dim, rows_d_o, queries, &mut d_scores);
            for i in 0..queries {
                let at = head.q + (first + i) * head.row;
                let delta = dot(isa, &saved.o[at..at + dim], &saved.d_o[at..at + dim]);
                let row = i * BLOCK..i * BLOCK + keys.width();
                let (s, d) = (&mut scores[row.clone()], &mut d_scores[row]);
                let lse = saved.lse[head.index * op.s_q + first + i];
                gradient_row(isa, s, d, keys.count, op.scale, lse, delta);
            }
            let upright = |data| Matrix { data, start: 0, row: BLOCK, column: 1 };
            let turned = |data| Matrix { data, start: 0, row: 1, column: BLOCK };
            let row_kv = head.kv + keys.first * head.row;
            let sizes = [keys.count, dim, queries];
            add(d_v, row_kv, sizes, turned(&scores), rows_d_o, first == 0);
            add(d_k, row_kv, sizes, turned(&d_scores), rows_q, first == 0);
            let row_q = head.q + first * head.row;
            let rows_k = head.tokens(saved.k, head.kv, keys.first);
            let sizes = [queries, dim, keys.count];
            add(d_q, row_q, sizes, upright(&d_scores), rows_k, keys.first == 0);
        }
    }
}
