//! Diffusion posterior sampling (Chung et al. 2023, Alg. 1): an image from y = H x +
//! n, H linear. Every step of DDIM is followed by one against the gradient of the
//! residual at the estimate of x_0,
//! ```text
//! x_s = step(x_t) - scale grad_x |m (y - H x_0(x_t))|
//! ```
//! with the network's own derivative by its input (the reference's step, whose norm
//! is not squared: the paper's zeta_i = scale / (2 |..|)). x_0 enters the residual
//! without a limit. The method replaces p(y | x_t) by p(y | E[x_0 | x_t]), which
//! makes the result too sure where x_0 is uncertain, and its step near |..| = 0 is
//! as long as elsewhere, so that the residual of a run settles near scale times the
//! last steps' length and not at 0.
//!
//! H is a matrix along the height, one along the width, and a mask, which covers
//! [`Operator::downsample`], [`Operator::blur`] and inpainting.

use super::{check_eta, path, step};
use crate::diffusion::sampler::run::{NetworkInputs, Predicted, Settings, guided_plan};
use crate::diffusion::sampler::{Control, Kind, Program, Setup, Stage};
use crate::error::{Error, Result};
use crate::plan::{DType, Plan, Role, TensorId, Wrt};

/// Names of the plan's tensors beside the sampler's: y `[n, ho, wo, c]`, its mask of
/// the same shape, and the matrices.
pub mod name {
    #![allow(missing_docs)]
    pub const MEASURED: &str = "edit.measured";
    pub const MASK: &str = "edit.mask";
    pub const ROWS: &str = "edit.rows";
    pub const COLUMNS: &str = "edit.columns";
}

/// Choices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dps {
    /// Length of a step against the gradient.
    pub scale: f64,
    /// Share of the ancestral noise.
    pub eta: f64,
}

impl Default for Dps {
    fn default() -> Self {
        Dps { scale: 1.0, eta: 1.0 }
    }
}

/// A matrix `[to, from]` along one axis.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Matrix {
    pub to: usize,
    pub from: usize,
    pub values: Vec<f32>,
}

impl Matrix {
    fn new(to: usize, from: usize, entry: impl Fn(usize, usize) -> f64) -> Matrix {
        let values = (0..to * from).map(|i| entry(i / from, i % from) as f32).collect();
        Matrix { to, from, values }
    }

    fn identity(size: usize) -> Matrix {
        Matrix::new(size, size, |i, j| f64::from(u8::from(i == j)))
    }

    /// Means of `factor` neighbours.
    fn means(size: usize, factor: usize) -> Matrix {
        let inside = |i: usize, j: usize| j / factor == i;
        Matrix::new(
            size / factor,
            size,
            |i, j| {
                if inside(i, j) { 1.0 / factor as f64 } else { 0.0 }
            },
        )
    }

    /// A Gaussian of that width, three of them to each side, of unit sum also at
    /// the edges.
    fn gaussian(size: usize, sigma: f64) -> Matrix {
        let weight = |i: usize, j: usize| {
            let d = (i as f64 - j as f64) / sigma;
            if d.abs() <= 3.0 { (-0.5 * d * d).exp() } else { 0.0 }
        };
        Matrix::new(size, size, |i, j| weight(i, j) / (0..size).map(|j| weight(i, j)).sum::<f64>())
    }

    fn is_identity(&self) -> bool {
        *self == Matrix::identity(self.from)
    }
}

/// H without its mask, which is a tensor of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Operator {
    /// Along the height.
    pub rows: Matrix,
    /// Along the width.
    pub columns: Matrix,
    /// Whether the run gives a mask of y.
    pub masked: bool,
}

impl Operator {
    /// y is the image where the mask is 1.
    pub fn mask(height: usize, width: usize) -> Operator {
        let (rows, columns) = (Matrix::identity(height), Matrix::identity(width));
        Operator { rows, columns, masked: true }
    }

    /// y is the mean over squares of `factor` pixels.
    ///
    /// # Errors
    /// The factor does not divide both sides.
    pub fn downsample(height: usize, width: usize, factor: usize) -> Result<Operator> {
        if factor == 0 || !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
            return Err(Error::Usage(format!(
                "--operator downsample:{factor}: {factor} does not divide {height} x {width}"
            )));
        }
        let (rows, columns) = (Matrix::means(height, factor), Matrix::means(width, factor));
        Ok(Operator { rows, columns, masked: false })
    }

    /// y is the image blurred by a Gaussian of `sigma` pixels.
    ///
    /// # Errors
    /// sigma is not above 0.
    pub fn blur(height: usize, width: usize, sigma: f64) -> Result<Operator> {
        if !(sigma > 0.0 && sigma.is_finite()) {
            return Err(Error::Usage(format!("--operator blur:{sigma}: must be above 0")));
        }
        let (rows, columns) = (Matrix::gaussian(height, sigma), Matrix::gaussian(width, sigma));
        Ok(Operator { rows, columns, masked: false })
    }

    /// By name, `mask`, `downsample:FACTOR` or `blur:SIGMA`.
    ///
    /// # Errors
    /// The name is not known or its number does not fit.
    pub fn from_name(name: &str, height: usize, width: usize) -> Result<Operator> {
        let wrong = || {
            Error::Usage(format!(
                "--operator `{name}` is none of mask, downsample:FACTOR (e.g. downsample:2), \
                 blur:SIGMA (e.g. blur:1.5)"
            ))
        };
        match name.split_once(':').unwrap_or((name, "")) {
            ("mask", "") => Ok(Operator::mask(height, width)),
            ("downsample", factor) => {
                Operator::downsample(height, width, factor.parse().map_err(|_| wrong())?)
            }
            ("blur", sigma) => Operator::blur(height, width, sigma.parse().map_err(|_| wrong())?),
            _ => Err(wrong()),
        }
    }

    /// `[ho, wo]` of y.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows.to, self.columns.to]
    }

    /// H of images `[n, h, w, c]`, without the mask.
    pub fn apply(&self, images: &[f32], channels: usize) -> Vec<f32> {
        let along = |x: &[f32], m: &Matrix, inner: usize| -> Vec<f32> {
            let mut y = Vec::with_capacity(x.len() / m.from * m.to);
            for x in x.chunks_exact(m.from * inner) {
                for row in m.values.chunks_exact(m.from) {
                    y.extend((0..inner).map(|i| {
                        let terms = row.iter().zip(x.iter().skip(i).step_by(inner));
                        terms.map(|(&m, &x)| f64::from(m) * f64::from(x)).sum::<f64>() as f32
                    }));
                }
            }
            y
        };
        let rows = along(images, &self.rows, self.columns.from * channels);
        along(&rows, &self.columns, channels)
    }

    /// The tensors of a run that are the same for all images.
    pub fn constants(&self) -> Vec<(&'static str, &[f32])> {
        let mut constants = Vec::new();
        if !self.rows.is_identity() {
            constants.push((name::ROWS, self.rows.values.as_slice()));
        }
        if !self.columns.is_identity() {
            constants.push((name::COLUMNS, self.columns.values.as_slice()));
        }
        constants
    }
}

/// The program; [`plan`] makes its plan.
pub fn program(setup: &Setup, options: &Dps) -> Result<Program> {
    let Dps { scale, eta } = *options;
    check_eta(eta)?;
    if !(scale >= 0.0 && scale.is_finite()) {
        return Err(Error::Usage(format!("--scale {scale} must be at least 0")));
    }
    let path = path(setup)?;
    // The gradient by the state, and by the network's input where that is another
    // tensor: x times the stage's input scale.
    let separate = path.points.iter().any(|point| point.evaluation.input_scale != 1.0);
    let stages = path.steps().map(|(update, point, next)| {
        let mut output = step(point, next.pair, eta);
        output.slots[1] = -scale;
        if separate {
            output.slots[2] = -scale * point.evaluation.input_scale;
        }
        Stage { outputs: [Some(output), None], ..Stage::at(point, update) }
    });
    Ok(Program {
        name: "dps",
        slots: if separate { 3 } else { 2 },
        limit: setup.limit(Kind::Ddim),
        start_std: path.start_std,
        stages: stages.collect(),
        control: Control::None,
        notes: path.notes,
    })
}

/// The plan of a stage: network, estimate, residual, its gradient, update.
///
/// # Errors
/// As [`guided_plan`]; with guidance, whose gradient is that of two networks.
pub fn plan(
    program: &Program,
    settings: &Settings,
    operator: &Operator,
    network: impl FnOnce(&mut Plan, NetworkInputs) -> Result<TensorId>,
) -> Result<Plan> {
    if settings.is_guided() {
        return Err(Error::Usage("dps takes no --guidance: the measurement guides it".into()));
    }
    guided_plan(program, settings, |plan, tensors| {
        let prediction = network(plan, tensors.inputs)?;
        let state = tensors.state;
        let x0 = plan.sampler_estimate(prediction, tensors.table, tensors.stage, state)?;
        let mut z = x0;
        let axes = [(name::ROWS, &operator.rows, 1), (name::COLUMNS, &operator.columns, 2)];
        for (name, matrix, axis) in axes {
            if !matrix.is_identity() {
                let shape = [matrix.to, matrix.from];
                let matrix = plan.activation(name, &shape, DType::F32, Role::State);
                z = plan.axis_map(z, matrix, axis)?;
            }
        }
        let shape = plan.shape(z).to_vec();
        let mut given = |name| plan.activation(name, &shape, DType::F32, Role::State);
        let y = given(name::MEASURED);
        let mask = operator.masked.then(|| given(name::MASK));
        let (direction, norm) = plan.sampler_residual(z, y, mask)?;
        plan.keep(norm);
        let mut by = vec![state];
        if tensors.inputs.x != state {
            by.push(tensors.inputs.x);
        }
        plan.derive(&[(z, Some(direction))], Wrt::Tensors(by.clone()))?;
        let guides = by.iter().map(|&x| {
            plan.gradient(x).ok_or_else(|| {
                Error::Usage("dps needs a network whose output depends on its input".into())
            })
        });
        Ok(Predicted { prediction, guides: guides.collect::<Result<_>>()? })
    })
}
