//! The samplers there are.

use crate::diffusion::scheduler::{Algorithm, SchedulerConfig};
use crate::error::{Error, Result};

/// The samplers there are, by `--sampler`'s names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ancestral sampling; diffusers' DDPMScheduler.
    Ddpm,
    /// Song et al. 2021; diffusers' DDIMScheduler.
    Ddim,
    /// The forward step solved for the state before it, without noise.
    Reversal,
    /// Euler-Maruyama on the reverse SDE.
    EulerMaruyama,
    /// The probability-flow ODE by Euler; diffusers' EulerDiscreteScheduler.
    OdeEuler,
    /// The probability-flow ODE by Heun; diffusers' HeunDiscreteScheduler.
    OdeHeun,
    /// Karras et al. 2022, Alg. 2: Heun with noise put back.
    Edm,
    /// DPM-Solver++ along the ODE; diffusers' DPMSolverMultistepScheduler.
    Dpmpp2m,
    /// DPM-Solver++ along the SDE; the same class with `sde-dpmsolver++`.
    DpmppSde2m,
    /// Zhao et al. 2023; diffusers' UniPCMultistepScheduler.
    UniPc,
    /// Ancestral sampling in x / signal; diffusers' EulerAncestralDiscreteScheduler.
    EulerA,
    /// Song et al. 2021: predictor and Langevin corrector.
    Pc,
    /// Song & Ermon 2019, 2020: annealed Langevin dynamics.
    Ald,
    /// The probability-flow ODE by Dormand and Prince's pair with error control.
    OdeRk45,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 14] = [
        Kind::Ddpm,
        Kind::Ddim,
        Kind::Reversal,
        Kind::EulerMaruyama,
        Kind::OdeEuler,
        Kind::OdeHeun,
        Kind::Edm,
        Kind::Dpmpp2m,
        Kind::DpmppSde2m,
        Kind::UniPc,
        Kind::EulerA,
        Kind::Pc,
        Kind::Ald,
        Kind::OdeRk45,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Ddpm => "ddpm",
            Kind::Ddim => "ddim",
            Kind::Reversal => "reversal",
            Kind::EulerMaruyama => "euler-maruyama",
            Kind::OdeEuler => "ode-euler",
            Kind::OdeHeun => "ode-heun",
            Kind::Edm => "edm",
            Kind::Dpmpp2m => "dpmpp-2m",
            Kind::DpmppSde2m => "dpmpp-sde-2m",
            Kind::UniPc => "unipc",
            Kind::EulerA => "euler-a",
            Kind::Pc => "pc",
            Kind::Ald => "ald",
            Kind::OdeRk45 => "ode-rk45",
        }
    }

    /// diffusers' class, where one is followed.
    pub fn class_name(self) -> Option<&'static str> {
        match self {
            Kind::Ddpm => Some("DDPMScheduler"),
            Kind::Ddim => Some("DDIMScheduler"),
            Kind::OdeEuler => Some("EulerDiscreteScheduler"),
            Kind::OdeHeun => Some("HeunDiscreteScheduler"),
            Kind::Dpmpp2m | Kind::DpmppSde2m => Some("DPMSolverMultistepScheduler"),
            Kind::UniPc => Some("UniPCMultistepScheduler"),
            Kind::EulerA => Some("EulerAncestralDiscreteScheduler"),
            Kind::Reversal | Kind::EulerMaruyama | Kind::Edm => None,
            Kind::Pc | Kind::Ald | Kind::OdeRk45 => None,
        }
    }

    /// The names of all, for people.
    pub fn names() -> String {
        Kind::ALL.map(Kind::name).join(", ")
    }

    /// The sampler of that name.
    pub fn from_name(name: &str) -> Result<Kind> {
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| {
            let names = Kind::names();
            Error::Usage(format!("--sampler `{name}` is not known; there are {names}"))
        })
    }

    /// The sampler a model's scheduler names.
    pub fn from_config(config: &SchedulerConfig) -> Result<Kind> {
        let stochastic = matches!(
            config.algorithm_type,
            Some(Algorithm::SdeDpmsolver | Algorithm::SdeDpmsolverPlusPlus)
        );
        let found =
            Kind::ALL.into_iter().find(|kind| kind.class_name() == Some(&config.class_name));
        match found {
            Some(Kind::Dpmpp2m) if stochastic => Ok(Kind::DpmppSde2m),
            Some(kind) => Ok(kind),
            None => {
                let classes: Vec<_> =
                    Kind::ALL.iter().filter_map(|kind| kind.class_name()).collect();
                Err(Error::config(
                    "scheduler._class_name",
                    format!(
                        "no sampler follows `{}`; supported are {}; name one with --sampler ({}) \
                         to run it on this model's schedule",
                        config.class_name,
                        classes.join(", "),
                        Kind::names(),
                    ),
                ))
            }
        }
    }
}
