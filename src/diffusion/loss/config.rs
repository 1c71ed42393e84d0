//! The configuration section `loss`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which loss. All but the variational ones are weighted squares of the
/// network's error, so that they differ in the weight of a time alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// The error of the prediction itself, at every time alike (Ho et al. 2020,
    /// eq. 14). With `posterior_mean` it is the regression on mu-tilde, under EDM's
    /// preconditioning EDM's loss but for the distribution of times.
    #[default]
    Simple,
    /// lambda(t) |score error|^2 (Song et al. 2021, eq. 7); reads `lambda`.
    Score,
    /// min(SNR, gamma) |x_0 error|^2 (Hang et al. 2023): min(SNR, gamma)/SNR on
    /// eps, /(SNR + 1) on v; reads `gamma`.
    MinSnr,
    /// (sigma^2 + sigma_data^2)/(sigma sigma_data)^2 |x_0 error|^2 at sigma =
    /// std/signal (Karras et al. 2022, table 1), of log-normal times.
    Edm,
    /// |mu-tilde error|^2 whatever is predicted (Ho et al. 2020, eq. 8 without
    /// 1/(2 sigma^2)).
    PosteriorMean,
    /// (b_t/bbar_t)^2 |eps error|^2: the step noise, reparametrised to its mean
    /// given x_0 and x_t.
    StepNoise,
    /// |z_t - (b_t/bbar_t) eps|^2 with the step noise z_t itself: two variables,
    /// x_(t-1) and x_t, in place of one. Its mean gradients are those of
    /// `step-noise`, their variance is larger.
    TwoVariable,
    /// The variational bound, L_t for t > 1 and the decoder's L_0 (Ho et al. 2020,
    /// eq. 5), in nats an element, of one time each.
    Vlb,
    /// `simple` for the mean and `vlb_weight` times the bound for the variance,
    /// the mean held fixed there (Nichol & Dhariwal 2021, sec. 3.1).
    Hybrid,
}

/// Weight of the score's squared error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lambda {
    /// 1.
    One,
    /// sigma^2: the same as `simple` for eps.
    #[default]
    Sigma2,
    /// g^2: the likelihood's (Song, Durkan et al. 2021).
    G2,
    /// By `weights`.
    Given,
}

/// Distribution of the times of training examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimesKind {
    /// Uniform from `t_min` to the end.
    Uniform,
    /// Of density proportional to lambda/sigma^2, and the loss divided by it: the
    /// same mean, of less variance.
    Importance,
    /// ln(std/signal) normal with mean `p_mean` and standard deviation `p_std`.
    LogNormal,
}

/// Section `loss`: what training minimises. A key that the kind does not read
/// is refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Which.
    pub kind: LossKind,
    /// Of `score`; sigma2 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda: Option<Lambda>,
    /// Of `lambda = given`: rows `[time, lambda]`, linear between, constant outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<[f64; 2]>>,
    /// Of `min-snr`; 5 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// Of `hybrid`: weight of the bound's sum over all T terms; 0.001 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlb_weight: Option<f64>,
    /// Uniform by default; log-normal for the loss and the process of EDM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<TimesKind>,
    /// Earliest time; the process's own by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub t_min: Option<f64>,
    /// Of log-normal times; -1.2 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p_mean: Option<f64>,
    /// Of log-normal times; 1.2 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p_std: Option<f64>,
}

impl LossConfig {
    /// The distribution of times for a process of that name.
    pub(super) fn times_for(&self, process: &str) -> TimesKind {
        self.times.unwrap_or(match (self.kind, process) {
            (LossKind::Edm, _) | (_, "edm") => TimesKind::LogNormal,
            _ => TimesKind::Uniform,
        })
    }

    /// Checks ranges, and that each key is read.
    pub(super) fn validate(&self, times: TimesKind) -> Result<()> {
        let refuse =
            |key: &str, problem: String| Err(Error::config(format!("loss.{key}"), problem));
        let lambda = self.lambda.unwrap_or_default();
        for (key, set, read, by) in [
            ("lambda", self.lambda.is_some(), self.kind == LossKind::Score, "loss.kind = score"),
            (
                "weights",
                self.weights.is_some(),
                self.kind == LossKind::Score && lambda == Lambda::Given,
                "loss.lambda = given",
            ),
            ("gamma", self.gamma.is_some(), self.kind == LossKind::MinSnr, "loss.kind = min-snr"),
            (
                "vlb_weight",
                self.vlb_weight.is_some(),
                self.kind == LossKind::Hybrid,
                "loss.kind = hybrid",
            ),
            (
                "p_mean",
                self.p_mean.is_some(),
                times == TimesKind::LogNormal,
                "loss.times = log_normal",
            ),
            (
                "p_std",
                self.p_std.is_some(),
                times == TimesKind::LogNormal,
                "loss.times = log_normal",
            ),
        ] {
            if set && !read {
                return refuse(key, format!("is read by {by} only; leave it out"));
            }
        }
        let positive =
            [("gamma", self.gamma), ("vlb_weight", self.vlb_weight), ("p_std", self.p_std)];
        for (key, value) in positive {
            if let Some(v) = value
                && !(v > 0.0 && v.is_finite())
            {
                return refuse(key, format!("{v} must be above 0"));
            }
        }
        if self.p_mean.is_some_and(|v| !v.is_finite()) {
            return refuse("p_mean", "must be finite".into());
        }
        if lambda == Lambda::Given {
            let rows = self.weights.as_deref().unwrap_or_default();
            let rising = rows.windows(2).all(|w| w[0][0] < w[1][0]);
            let good = rows.iter().all(|r| r[0].is_finite() && r[1] >= 0.0 && r[1].is_finite());
            if rows.is_empty() || !rising || !good {
                return refuse(
                    "weights",
                    "needs rows [time, lambda], times rising and lambda 0 or more".into(),
                );
            }
        }
        if times == TimesKind::Importance && self.kind != LossKind::Score {
            return refuse(
                "times",
                "importance follows lambda/sigma^2 of loss.kind = score; set that, or leave it out"
                    .into(),
            );
        }
        Ok(())
    }

    /// Given weights at a time.
    pub(super) fn given(&self, time: f64) -> f64 {
        let rows = self.weights.as_deref().unwrap_or_default();
        let i = rows.partition_point(|r| r[0] <= time);
        match (i.checked_sub(1).map(|i| rows[i]), rows.get(i)) {
            (Some(a), Some(b)) => a[1] + (time - a[0]) / (b[0] - a[0]) * (b[1] - a[1]),
            (Some(a), None) => a[1],
            (None, b) => b.map_or(1.0, |b| b[1]),
        }
    }
}
