//! The linear algebra that the scores need, in f64: products and distances of
//! all pairs of rows, covariance, Cholesky with pivoting, singular values.
#![allow(unsafe_code)] // The kernels are compiled for each instruction set.

use std::sync::Mutex;

use super::Features;
use crate::backend::cpu::isa::{Isa, multiversion};
use crate::backend::cpu::pool::Pool;

/// Rows that are combined at once.
const TILE: usize = 4;
/// Lanes of a sum, added up pairwise at its end.
const LANES: usize = 8;
/// Rows of the first operand that one task takes.
const BLOCK: usize = 16;

/// What is computed for a pair of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// sum_e a_e b_e
    Product,
    /// sum_e (a_e - b_e)^2
    SquaredDistance,
}

#[inline(always)]
fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn term(pair: Pair, a: f64, b: f64, sum: f64) -> f64 {
    match pair {
        Pair::Product => a.mul_add(b, sum),
        Pair::SquaredDistance => (a - b).mul_add(a - b, sum),
    }
}

multiversion! {
    /// All pairs of `TILE` rows with `TILE` rows.
    fn tile(isa: Isa, pair: Pair, a: [&[f64]; TILE], b: [&[f64]; TILE]) -> [[f64; TILE]; TILE] {
        let dim = a[0].len();
        let mut sums = [[[0f64; LANES]; TILE]; TILE];
        let whole = dim / LANES * LANES;
        let mut at = 0;
        while at < whole {
            for (a, sums) in a.iter().zip(&mut sums) {
                let a = &a[at..at + LANES];
                for (b, sums) in b.iter().zip(sums) {
                    let b = &b[at..at + LANES];
                    for l in 0..LANES {
                        sums[l] = term(pair, a[l], b[l], sums[l]);
                    }
                }
            }
            at += LANES;
        }
        let mut out = [[0f64; TILE]; TILE];
        for i in 0..TILE {
            for j in 0..TILE {
                let rest = (whole..dim).fold(0.0, |sum, e| term(pair, a[i][e], b[j][e], sum));
                out[i][j] = fold(sums[i][j]) + rest;
            }
        }
        out
    }
}

multiversion! {
    fn dot(isa: Isa, a: &[f64], b: &[f64]) -> f64 {
        let mut sums = [0f64; LANES];
        let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let rest = a_lanes.remainder().iter().zip(b_lanes.remainder());
        let rest = rest.fold(0.0, |sum, (&a, &b)| a.mul_add(b, sum));
        for (a, b) in a_lanes.zip(b_lanes) {
            for l in 0..LANES {
                sums[l] = a[l].mul_add(b[l], sums[l]);
            }
        }
        fold(sums) + rest
    }
}

multiversion! {
    /// y += factor x
    fn axpy(isa: Isa, factor: f64, x: &[f64], y: &mut [f64]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = factor.mul_add(x, *y);
        }
    }
}

/// For every row of `a [n, dim]`, what `of_row` makes of its values with all
/// rows of `b [m, dim]`.
pub fn map_rows<R: Send>(
    pool: &Pool,
    pair: Pair,
    dim: usize,
    a: &[f64],
    b: &[f64],
    of_row: &(dyn Fn(usize, &[f64]) -> R + Sync),
) -> Vec<R> {
    let (n, m) = (a.len() / dim, b.len() / dim);
    let results: Vec<Mutex<Vec<R>>> = (0..n.div_ceil(BLOCK)).map(|_| Mutex::default()).collect();
    pool.run(results.len(), &|task| {
        let first = task * BLOCK;
        let rows = BLOCK.min(n - first);
        let mut values = vec![0f64; rows * m];
        for j in (0..m).step_by(TILE) {
            // The last row again where the rows end.
            let b_rows = std::array::from_fn(|k| {
                let j = (j + k).min(m - 1);
                &b[j * dim..(j + 1) * dim]
            });
            for i in (0..rows).step_by(TILE) {
                let a_rows = std::array::from_fn(|k| {
                    let i = first + (i + k).min(rows - 1);
                    &a[i * dim..(i + 1) * dim]
                });
                let sums = tile(pool.isa(), pair, a_rows, b_rows);
                for (k, sums) in sums.iter().enumerate().take(rows - i) {
                    let there = TILE.min(m - j);
                    values[(i + k) * m + j..][..there].copy_from_slice(&sums[..there]);
                }
            }
        }
        let done = values.chunks_exact(m).enumerate().map(|(i, v)| of_row(first + i, v)).collect();
        *results[task].lock().expect("no task panics holding it") = done;
    });
    let rows = results.into_iter();
    rows.flat_map(|r| r.into_inner().expect("no task panicked")).collect()
}

/// Mean `[dim]` of a set.
pub fn mean(features: &Features) -> Vec<f64> {
    let mut sum = vec![0f64; features.dim()];
    for row in features.values().chunks_exact(features.dim()) {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
    }
    sum.iter_mut().for_each(|s| *s /= features.len() as f64);
    sum
}

/// Covariance `[dim, dim]` about `mean`, divided by n - 1.
pub fn covariance(pool: &Pool, features: &Features, mean: &[f64]) -> Vec<f64> {
    /// Vectors that are transposed at once.
    const CHUNK: usize = 2048;
    let (n, dim) = (features.len(), features.dim());
    let mut sum = vec![0f64; dim * dim];
    for rows in features.values().chunks(CHUNK * dim) {
        let len = rows.len() / dim;
        let mut columns = vec![0f64; rows.len()];
        for (i, row) in rows.chunks_exact(dim).enumerate() {
            for (e, (v, m)) in row.iter().zip(mean).enumerate() {
                columns[e * len + i] = v - m;
            }
        }
        let sum = Mutex::new(&mut sum);
        map_rows(pool, Pair::Product, len, &columns, &columns, &|i, products| {
            let mut sum = sum.lock().expect("no task panics holding it");
            let row = &mut sum[i * dim..(i + 1) * dim];
            row.iter_mut().zip(products).for_each(|(s, p)| *s += p);
        });
    }
    sum.iter_mut().for_each(|s| *s /= (n - 1) as f64);
    sum
}

/// The sum of the diagonal of `a [dim, dim]`.
pub fn trace(a: &[f64], dim: usize) -> f64 {
    a.iter().step_by(dim + 1).sum()
}

/// A factor L `[dim, rank]` of the positive semidefinite `a [dim, dim]`, a = L L^T
/// up to rounding, by Cholesky with the largest remaining pivot. Returned
/// transposed, `[rank, dim]`.
pub fn factor(isa: Isa, a: &[f64], dim: usize) -> Vec<f64> {
    // Rows of L, as far as they are known.
    let mut l = vec![0f64; dim * dim];
    let mut left: Vec<f64> = a.iter().step_by(dim + 1).copied().collect();
    let enough = left.iter().copied().fold(0.0, f64::max) * dim as f64 * f64::EPSILON;
    let mut rank = 0;
    for k in 0..dim {
        let (pivot, &most) =
            left.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("a matrix has a row");
        if most <= enough {
            break;
        }
        let root = most.sqrt();
        let pivot_row = l[pivot * dim..][..k].to_vec();
        for i in 0..dim {
            let row = &mut l[i * dim..(i + 1) * dim];
            let value = match left[i] {
                _ if i == pivot => root,
                // A row that has been a pivot is complete.
                f64::NEG_INFINITY => 0.0,
                _ => (a[i * dim + pivot] - dot(isa, &row[..k], &pivot_row)) / root,
            };
            row[k] = value;
            left[i] -= value * value;
        }
        left[pivot] = f64::NEG_INFINITY;
        rank = k + 1;
    }
    transposed(&l, dim, dim)[..rank * dim].to_vec()
}

/// `a [rows, columns]` as `[columns, rows]`.
pub fn transposed(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(a.len());
    for c in 0..columns {
        out.extend((0..rows).map(|r| a[r * columns + c]));
    }
    out
}

/// Singular values of `a [m, n]`, largest first.
///
/// Householder's bidiagonal form (Golub & Kahan 1965); its singular values are the
/// positive eigenvalues of a tridiagonal matrix with zero diagonal, found by
/// bisection, which cannot fail to converge. Accurate to rounding of the largest.
pub fn singular_values(pool: &Pool, a: &[f64], m: usize, n: usize) -> Vec<f64> {
    if m == 0 || n == 0 {
        return Vec::new();
    }
    let (mut a, m, n) = if m >= n { (a.to_vec(), m, n) } else { (transposed(a, m, n), n, m) };
    let off = bidiagonal(pool, &mut a, m, n);
    let largest = off.iter().fold(0f64, |most, v| most.max(v.abs()));
    if largest == 0.0 {
        return vec![0.0; n];
    }
    let squares: Vec<f64> = off.iter().map(|v| (v / largest).powi(2)).collect();
    // Gershgorin: no eigenvalue of the scaled matrix lies beyond 2.
    let values: Vec<Mutex<f64>> = (0..n).map(|_| Mutex::new(0.0)).collect();
    pool.run(n, &|k| {
        let (mut low, mut high) = (0f64, 2f64);
        while high - low > 1e-16 * 2.0 {
            let middle = 0.5 * (low + high);
            if middle <= low || middle >= high {
                break;
            }
            // The k-th largest lies below `middle` if at most k do not.
            if below(&squares, middle) >= 2 * n - k {
                high = middle;
            } else {
                low = middle;
            }
        }
        *values[k].lock().expect("no task panics holding it") = 0.5 * (low + high) * largest;
    });
    values.into_iter().map(|v| v.into_inner().expect("no task panicked")).collect()
}

/// Eigenvalues below x of the tridiagonal matrix with zero diagonal and these
/// squared off-diagonal elements (Sturm's sequence).
fn below(squares: &[f64], x: f64) -> usize {
    let nonzero = |q: f64| if q == 0.0 { -f64::MIN_POSITIVE } else { q };
    let mut q = nonzero(-x);
    let mut count = usize::from(q < 0.0);
    for &square in squares {
        q = nonzero(-x - square / q);
        count += usize::from(q < 0.0);
    }
    count
}

/// A reflector I - tau v v^T that takes x to (beta, 0, ...): v in x's place.
fn reflector(x: &mut [f64]) -> (f64, f64) {
    let scale = x.iter().fold(0f64, |most, v| most.max(v.abs()));
    if scale == 0.0 {
        return (0.0, 0.0);
    }
    let norm = scale * x.iter().map(|v| (v / scale).powi(2)).sum::<f64>().sqrt();
    let beta = if x[0] > 0.0 { -norm } else { norm };
    let tau = (beta - x[0]) / beta;
    let head = x[0] - beta;
    x[0] = 1.0;
    x[1..].iter_mut().for_each(|v| *v /= head);
    (beta, tau)
}

/// Reduces `a [m, n]`, m >= n, to upper bidiagonal form; returns the diagonal and
/// the superdiagonal, alternating: `[2 n - 1]`.
fn bidiagonal(pool: &Pool, a: &mut [f64], m: usize, n: usize) -> Vec<f64> {
    /// Rows of a task.
    const ROWS: usize = 64;
    let isa = pool.isa();
    let mut off = Vec::with_capacity(2 * n - 1);
    for k in 0..n {
        let mut v: Vec<f64> = (k..m).map(|i| a[i * n + k]).collect();
        let (beta, tau) = reflector(&mut v);
        off.push(beta);
        if k + 1 == n {
            break;
        }
        let width = n - k - 1;
        // w = tau A^T v over the columns to the right, summed in order of blocks.
        let parts: Vec<Mutex<Vec<f64>>> =
            (0..(m - k).div_ceil(ROWS)).map(|_| Mutex::default()).collect();
        let (matrix, v) = (&*a, &v);
        pool.run(parts.len(), &|task| {
            let mut w = vec![0f64; width];
            for i in task * ROWS..((task + 1) * ROWS).min(m - k) {
                axpy(isa, v[i], &matrix[(k + i) * n + k + 1..(k + i + 1) * n], &mut w);
            }
            *parts[task].lock().expect("no task panics holding it") = w;
        });
        let mut w = vec![0f64; width];
        for part in parts {
            axpy(isa, tau, &part.into_inner().expect("no task panicked"), &mut w);
        }
        let row = &mut a[k * n + k + 1..(k + 1) * n];
        axpy(isa, -v[0], &w, row);
        let mut u = row.to_vec();
        let (beta, tau) = reflector(&mut u);
        off.push(beta);
        let below = &mut a[(k + 1) * n..m * n];
        let blocks: Vec<Mutex<&mut [f64]>> = below.chunks_mut(ROWS * n).map(Mutex::new).collect();
        let (w, u) = (&w, &u);
        pool.run(blocks.len(), &|task| {
            let mut block = blocks[task].lock().expect("no task panics holding it");
            for (i, row) in block.chunks_exact_mut(n).enumerate() {
                let row = &mut row[k + 1..];
                axpy(isa, -v[1 + task * ROWS + i], w, row);
                let s = tau * dot(isa, row, u);
                axpy(isa, -s, u, row);
            }
        });
    }
    off
}
