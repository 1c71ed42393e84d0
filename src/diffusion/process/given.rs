//! A process that a person gives as a table of (time, signal, std).

use super::{LABELS, Pair, Process};
use crate::error::{Error, Result};

/// Between the entries ln(signal) and lambda = ln(signal/std) are monotone cubics
/// (Fritsch & Carlson 1980), so that the SNR falls everywhere and f and g^2 are
/// continuous. In a first interval that starts without noise std^2/signal^2 is
/// linear, in a last one that ends without signal the signal is.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    times: Vec<f64>,
    pairs: Vec<Pair>,
    /// d ln(signal)/dt and d lambda/dt at the entries.
    slopes: Vec<(f64, f64)>,
    earliest: f64,
}

/// Slopes of the monotone cubic through points, three-point formula limited as
/// in Fritsch & Butland 1984.
fn slopes(times: &[f64], values: &[f64]) -> Vec<f64> {
    let n = times.len();
    let secant = |i: usize| (values[i + 1] - values[i]) / (times[i + 1] - times[i]);
    (0..n)
        .map(|i| {
            if i == 0 || i + 1 == n {
                return if n == 1 { 0.0 } else { secant(i.min(n - 2)) };
            }
            let (left, right) = (secant(i - 1), secant(i));
            if left * right <= 0.0 {
                return 0.0;
            }
            let (h0, h1) = (times[i] - times[i - 1], times[i + 1] - times[i]);
            let (w0, w1) = (2.0 * h1 + h0, h1 + 2.0 * h0);
            (w0 + w1) / (w0 / left + w1 / right)
        })
        .collect()
}

/// Value and derivative of the cubic on an interval of width h at the part x.
fn cubic(h: f64, x: f64, a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    let secant = (b.0 - a.0) / h;
    // Newton's form: a + h x (m_a + x ((2 - ...)))
    let c2 = 3.0 * secant - 2.0 * a.1 - b.1;
    let c3 = a.1 + b.1 - 2.0 * secant;
    (a.0 + h * x * (a.1 + x * (c2 + x * c3)), a.1 + x * (2.0 * c2 + 3.0 * x * c3))
}

impl Given {
    /// Entries in order of time, at least two.
    ///
    /// # Errors
    /// Times that do not rise, values out of range, or an SNR that does not fall.
    pub fn new(entries: &[(f64, f64, f64)]) -> Result<Given> {
        let refuse = |i: usize, what: String| {
            Err(Error::config("process.table", format!("entry {i}: {what}")))
        };
        if entries.len() < 2 {
            return Err(Error::config(
                "process.table",
                "needs at least two entries [time, signal, std]",
            ));
        }
        let last = entries.len() - 1;
        let mut given = Given { times: vec![], pairs: vec![], slopes: vec![], earliest: 0.0 };
        for (i, &(time, signal, std)) in entries.iter().enumerate() {
            if !(time >= 0.0 && time.is_finite()) {
                return refuse(i, format!("time {time} must be 0 or more"));
            }
            if !(signal >= 0.0 && signal.is_finite() && std >= 0.0 && std.is_finite()) {
                return refuse(i, format!("signal {signal} and std {std} must be 0 or more"));
            }
            if signal == 0.0 && (i != last || std == 0.0 || last < 2) {
                return refuse(i, "the signal may be 0 only at the last of three or more".into());
            }
            if std == 0.0 && (i != 0 || last < 2) {
                return refuse(i, "the std may be 0 only at the first of three or more".into());
            }
            let pair = Pair { ln_signal: signal.ln(), std };
            if let (Some(&before), Some(earlier)) = (given.times.last(), given.pairs.last()) {
                if time <= before {
                    return refuse(i, format!("time {time} does not come after {before}"));
                }
                if pair.half_log_snr() >= earlier.half_log_snr() {
                    return refuse(
                        i,
                        format!(
                            "the SNR must fall with time, and {} follows {}; check signal and std",
                            pair.snr(),
                            earlier.snr()
                        ),
                    );
                }
            }
            given.times.push(time);
            given.pairs.push(pair);
        }
        // Entries without noise or signal stand outside the cubics.
        let from = usize::from(given.pairs[0].std == 0.0);
        let to = if given.pairs[last].ln_signal == f64::NEG_INFINITY { last } else { last + 1 };
        let times = &given.times[from..to];
        let of = |f: fn(&Pair) -> f64| -> Vec<f64> {
            slopes(times, &given.pairs[from..to].iter().map(f).collect::<Vec<_>>())
        };
        let (signal, snr) = (of(|p| p.ln_signal), of(Pair::half_log_snr));
        given.slopes = vec![(0.0, 0.0); last + 1];
        for (i, slope) in signal.into_iter().zip(snr).enumerate() {
            given.slopes[from + i] = slope;
        }
        let first = given.times[from];
        given.earliest = if from == 1 { first } else { first + 1e-3 * (given.times[last] - first) };
        Ok(given)
    }

    /// The same with another earliest time.
    pub fn with_earliest(self, earliest: f64) -> Given {
        Given { earliest, ..self }
    }

    /// Values and time derivatives of (ln signal, lambda) at a time.
    fn curves(&self, time: f64) -> [(f64, f64); 2] {
        let last = self.times.len() - 1;
        let time = time.clamp(self.times[0], self.times[last]);
        let i = self.times.partition_point(|&t| t <= time).clamp(1, last) - 1;
        let (a, b) = (self.pairs[i], self.pairs[i + 1]);
        let h = self.times[i + 1] - self.times[i];
        let x = (time - self.times[i]) / h;
        if a.std == 0.0 {
            let slope = (b.ln_signal - a.ln_signal) / h;
            let lambda = b.half_log_snr() - 0.5 * x.ln();
            return [(a.ln_signal + slope * x * h, slope), (lambda, -0.5 / (x * h))];
        }
        if b.ln_signal == f64::NEG_INFINITY {
            let std = a.std + x * (b.std - a.std);
            let ln_signal = a.ln_signal + (-x).ln_1p();
            let fall = -1.0 / (h * (1.0 - x));
            return [(ln_signal, fall), (ln_signal - std.ln(), fall - (b.std - a.std) / h / std)];
        }
        let (p, q) = (self.slopes[i], self.slopes[i + 1]);
        [
            cubic(h, x, (a.ln_signal, p.0), (b.ln_signal, q.0)),
            cubic(h, x, (a.half_log_snr(), p.1), (b.half_log_snr(), q.1)),
        ]
    }
}

impl Process for Given {
    fn name(&self) -> &'static str {
        "given"
    }

    fn end(&self) -> f64 {
        self.times[self.times.len() - 1]
    }

    fn earliest(&self) -> f64 {
        self.earliest
    }

    fn pair(&self, time: f64) -> Pair {
        if let Ok(i) = self.times.binary_search_by(|t| t.total_cmp(&time)) {
            return self.pairs[i];
        }
        let [(ln_signal, _), (lambda, _)] = self.curves(time);
        if ln_signal == f64::NEG_INFINITY || lambda == f64::INFINITY {
            return self.pairs[if lambda > 0.0 { 0 } else { self.pairs.len() - 1 }];
        }
        Pair { ln_signal, std: (ln_signal - lambda).exp() }
    }

    fn drift(&self, time: f64) -> f64 {
        self.curves(time)[0].1
    }

    /// g^2 = -2 sigma^2 d lambda/dt.
    fn diffusion2(&self, time: f64) -> f64 {
        let [(ln_signal, _), (lambda, slope)] = self.curves(time);
        if lambda == f64::INFINITY {
            // std^2/signal^2 is linear from 0: its slope is what is left.
            let b = self.pairs[1];
            let ratio2 = (-2.0 * b.half_log_snr()).exp() / (self.times[1] - self.times[0]);
            return ratio2 * (2.0 * ln_signal).exp();
        }
        -2.0 * slope * self.pair(time).variance()
    }

    fn label(&self, time: f64) -> f64 {
        LABELS * time / self.end()
    }

    fn time_of(&self, half_log_snr: f64) -> f64 {
        if let Some(i) = self.pairs.iter().position(|p| p.half_log_snr() == half_log_snr) {
            return self.times[i];
        }
        // Lambda falls: halve the interval until it is two neighbouring numbers.
        let (mut low, mut high) = (self.times[0], self.end());
        loop {
            let middle = low + 0.5 * (high - low);
            if middle <= low || middle >= high {
                return high;
            }
            if self.pair(middle).half_log_snr() > half_log_snr {
                low = middle;
            } else {
                high = middle;
            }
        }
    }

    fn prior_std(&self) -> f64 {
        self.pairs[self.pairs.len() - 1].std
    }
}
