//! diffusers' scheduler classes and the fields that each has.

use super::Spacing;

/// Fields of every class followed, after which come each class's own with their
/// defaults, as JSON.
const COMMON: &[&str] = &[
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
];

const CLIPPING: [(&str, &str); 2] = [("clip_sample", "true"), ("clip_sample_range", "1.0")];
const THRESHOLDING: [(&str, &str); 3] = [
    ("thresholding", "false"),
    ("dynamic_thresholding_ratio", "0.995"),
    ("sample_max_value", "1.0"),
];
const SIGMAS: [(&str, &str); 3] = [
    ("use_karras_sigmas", "false"),
    ("use_exponential_sigmas", "false"),
    ("use_beta_sigmas", "false"),
];
const TRAINED_BETAS: (&str, &str) = ("trained_betas", "null");
const ZERO_SNR: (&str, &str) = ("rescale_betas_zero_snr", "false");
const FINAL: (&str, &str) = ("final_sigmas_type", "\"zero\"");

/// A class of diffusers that is followed field by field.
pub struct Class {
    /// diffusers' name.
    pub name: &'static str,
    /// Its default `timestep_spacing`.
    pub spacing: Spacing,
    /// Its fields beside the common ones, with their defaults as JSON.
    fields: &'static [&'static [(&'static str, &'static str)]],
}

/// The classes of diffusers that are followed.
pub const FOLLOWED: &[Class] = &[
    Class {
        name: "DDPMScheduler",
        spacing: Spacing::Leading,
        fields: &[
            &CLIPPING,
            &THRESHOLDING,
            &[TRAINED_BETAS, ZERO_SNR, ("variance_type", "\"fixed_small\"")],
        ],
    },
    Class {
        name: "DDIMScheduler",
        spacing: Spacing::Leading,
        fields: &[
            &CLIPPING,
            &THRESHOLDING,
            &[TRAINED_BETAS, ZERO_SNR, ("set_alpha_to_one", "true")],
        ],
    },
    Class {
        name: "EulerDiscreteScheduler",
        spacing: Spacing::Linspace,
        fields: &[
            &SIGMAS,
            &[
                TRAINED_BETAS,
                ZERO_SNR,
                FINAL,
                ("interpolation_type", "\"linear\""),
                ("timestep_type", "\"discrete\""),
                ("sigma_min", "null"),
                ("sigma_max", "null"),
            ],
        ],
    },
    Class {
        name: "EulerAncestralDiscreteScheduler",
        spacing: Spacing::Linspace,
        fields: &[&[TRAINED_BETAS, ZERO_SNR]],
    },
    Class {
        name: "HeunDiscreteScheduler",
        spacing: Spacing::Linspace,
        fields: &[
            &SIGMAS,
            &[TRAINED_BETAS, ("clip_sample", "false"), ("clip_sample_range", "1.0")],
        ],
    },
    Class {
        name: "DPMSolverMultistepScheduler",
        spacing: Spacing::Linspace,
        fields: &[
            &SIGMAS,
            &THRESHOLDING,
            &[
                TRAINED_BETAS,
                ZERO_SNR,
                FINAL,
                ("solver_order", "2"),
                ("algorithm_type", "\"dpmsolver++\""),
                ("solver_type", "\"midpoint\""),
                ("lower_order_final", "true"),
                ("euler_at_final", "false"),
                ("use_lu_lambdas", "false"),
                ("use_flow_sigmas", "false"),
                ("flow_shift", "1.0"),
                // The lowest f64 in place of -Infinity, for which JSON has no word.
                ("lambda_min_clipped", "-1.7976931348623157e308"),
                ("variance_type", "null"),
                ("use_dynamic_shifting", "false"),
                ("time_shift_type", "\"exponential\""),
            ],
        ],
    },
    Class {
        name: "UniPCMultistepScheduler",
        spacing: Spacing::Linspace,
        fields: &[
            &SIGMAS,
            &THRESHOLDING,
            &[
                TRAINED_BETAS,
                ZERO_SNR,
                FINAL,
                ("solver_order", "2"),
                ("predict_x0", "true"),
                ("solver_type", "\"bh2\""),
                ("lower_order_final", "true"),
                ("disable_corrector", "[]"),
                ("solver_p", "null"),
                ("use_flow_sigmas", "false"),
                ("flow_shift", "1.0"),
                ("use_dynamic_shifting", "false"),
                ("time_shift_type", "\"exponential\""),
                ("sigma_min", "null"),
                ("sigma_max", "null"),
                ("shift_terminal", "null"),
            ],
        ],
    },
];

impl Class {
    /// The followed class of that name.
    pub fn named(name: &str) -> Option<&'static Class> {
        FOLLOWED.iter().find(|class| class.name == name)
    }

    pub(super) fn fields(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.fields.iter().flat_map(|fields| fields.iter().copied())
    }

    pub(super) fn has(&self, field: &str) -> bool {
        COMMON.contains(&field) || self.fields().any(|(name, _)| name == field)
    }
}

/// The other scheduler classes of diffusers. Their files are recognised.
pub(super) const OTHER_CLASSES: &[&str] = &[
    "AmusedScheduler",
    "CMStochasticIterativeScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "DDPMWuerstchenScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KarrasVeScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "LTXEulerAncestralRFScheduler",
    "PNDMScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "VQDiffusionScheduler",
];
