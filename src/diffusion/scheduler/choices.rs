//! What diffusers' scheduler fields may be set to, by their names there.

use serde::{Deserialize, Serialize};

/// Variance of DDPM's reverse step; diffusers' `variance_type`. The `_log`
/// forms state the same variances by their logarithm and sample the same way
/// (diffusers' own `fixed_large_log` takes the root of a negative number).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum VarianceType {
    /// The posterior's, beta-tilde.
    #[default]
    FixedSmall,
    FixedSmallLog,
    /// The forward step's, beta.
    FixedLarge,
    FixedLargeLog,
    /// Given by the network.
    Learned,
    /// Interpolated between the two fixed ones by the network.
    LearnedRange,
}

/// How the sampler's steps are spread over the labels 0..T (Lin et al. 2024,
/// table 2); diffusers' `timestep_spacing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spacing {
    /// Multiples of T / N rounded down, from 0, plus `steps_offset`.
    #[default]
    Leading,
    /// Multiples of T / N counted down from T, less one.
    Trailing,
    /// From 0 to T - 1, both included.
    Linspace,
}

/// How Euler's noise levels lie between two entries of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Linear in sigma over the label.
    #[default]
    Linear,
    /// Evenly spaced in ln sigma over the whole table, whatever the labels.
    LogLinear,
}

/// What Euler tells a v-prediction network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepType {
    /// The table's label.
    #[default]
    Discrete,
    /// ln(sigma) / 4, as EDM.
    Continuous,
}

/// Where sampling ends; diffusers' `final_sigmas_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// At the data.
    #[default]
    Zero,
    /// At the least noise of the table.
    SigmaMin,
}

/// What DPMSolverMultistep integrates; diffusers' `algorithm_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// eps along the ODE (Lu et al. 2022a).
    #[serde(rename = "dpmsolver")]
    Dpmsolver,
    /// x_0 along the ODE (Lu et al. 2022b).
    #[default]
    #[serde(rename = "dpmsolver++", alias = "deis")]
    DpmsolverPlusPlus,
    /// eps along the SDE.
    #[serde(rename = "sde-dpmsolver")]
    SdeDpmsolver,
    /// x_0 along the SDE.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmsolverPlusPlus,
}

/// Form of the second-order term; diffusers' `solver_type`. A form of the other
/// class stands for a class's own default, as in diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum SolverType {
    Midpoint,
    Heun,
    Logrho,
    Bh1,
    Bh2,
}
