//! Times of training examples.

use crate::diffusion::process::Process;
use crate::diffusion::vlb::upper_tail;

/// A drawn time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// The process's time; a whole number for a discrete chain.
    pub time: f64,
    /// Uniform density over the density it was drawn with: the factor of its loss.
    pub weight: f64,
    /// Share of the distribution that lies before it.
    pub quantile: f64,
}

/// A distribution of times, ready to draw from.
#[derive(Clone, Debug)]
pub(super) enum Times {
    /// Whole numbers `first ..= last`.
    States { first: usize, last: usize },
    /// The interval.
    Interval { from: f64, to: f64 },
    /// Piecewise constant density.
    Cells(Cells),
    /// ln(std/signal) is normal.
    LogNormal { mean: f64, std: f64, from: f64 },
}

/// Cells of the time axis with the share of draws that fall before each end.
#[derive(Clone, Debug)]
pub(super) struct Cells {
    /// One more than there are cells; of a discrete chain the cells are (i - 1, i].
    edges: Vec<f64>,
    cumulative: Vec<f64>,
    discrete: bool,
}

/// Cells of a continuous time axis.
const CELLS: usize = 4096;

impl Cells {
    /// Density proportional to `weight` from `from` to `to`; of a discrete chain
    /// over its states.
    pub(super) fn new(from: f64, to: f64, discrete: bool, weight: impl Fn(f64) -> f64) -> Cells {
        let edges: Vec<f64> = if discrete {
            (0..=(to - from) as usize + 1).map(|i| from - 1.0 + i as f64).collect()
        } else if from > 0.0 {
            // Weights rise as powers of the time: cells of equal ratio.
            let ratio = (to / from).ln();
            let inner = (1..CELLS).map(|i| from * (ratio * i as f64 / CELLS as f64).exp());
            [from].into_iter().chain(inner).chain([to]).collect()
        } else {
            (0..=CELLS).map(|i| from + (to - from) * i as f64 / CELLS as f64).collect()
        };
        let mut sum = 0.0;
        let mut cumulative = vec![0.0];
        for cell in edges.windows(2) {
            let at = if discrete { cell[1] } else { 0.5 * (cell[0] + cell[1]) };
            sum += weight(at) * (cell[1] - cell[0]);
            cumulative.push(sum);
        }
        for share in &mut cumulative {
            *share /= sum;
        }
        Cells { edges, cumulative, discrete }
    }

    fn draw(&self, u: f64) -> Draw {
        let last = self.edges.len() - 2;
        let i = self.cumulative.partition_point(|&c| c <= u).saturating_sub(1).min(last);
        let (share, width) =
            (self.cumulative[i + 1] - self.cumulative[i], self.edges[i + 1] - self.edges[i]);
        let part = ((u - self.cumulative[i]) / share).clamp(0.0, 1.0);
        let time = if self.discrete { self.edges[i + 1] } else { self.edges[i] + part * width };
        let whole = self.edges[last + 1] - self.edges[0];
        Draw { time, weight: width / (share * whole), quantile: u }
    }
}

impl Times {
    /// The time of a uniform `u` in (0, 1), or of a standard normal `z`.
    pub(super) fn draw(&self, process: &dyn Process, u: f64, z: f64) -> Draw {
        match self {
            Times::States { first, last } => {
                let time = first + (u * (last - first + 1) as f64) as usize;
                Draw { time: time.min(*last) as f64, weight: 1.0, quantile: u }
            }
            Times::Interval { from, to } => {
                Draw { time: from + u * (to - from), weight: 1.0, quantile: u }
            }
            Times::Cells(cells) => cells.draw(u),
            Times::LogNormal { mean, std, from } => {
                let time = process.time_of(-(mean + std * z));
                let time = if process.steps().is_some() { time.round() } else { time };
                let quantile = upper_tail(-z).exp();
                Draw { time: time.clamp(*from, process.end()), weight: 1.0, quantile }
            }
        }
    }
}
