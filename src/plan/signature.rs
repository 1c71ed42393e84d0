//! What every op reads and writes: how many elements of which type stand at each
//! position. A node that agrees touches no byte outside its operands, whoever made it.
//! Which operands may be bf16 is the business of [`types`](super::types).

use super::{DType, Node, Plan};
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::ops::attention::Attention;
use crate::ops::conv2d::{Conv2d, PER_IMAGE, RESIDUAL};
use crate::ops::linear::{GroupPass, Linear, LinearGroup};
use crate::ops::loss::Loss;
use crate::ops::noising::{Noising, Pick, coefficient, pick};
use crate::ops::norm::{Domain, Norm};
use crate::ops::optimizer::control;
use crate::ops::sampler_blend::column as blend;
use crate::ops::sampler_rk45::{STAGES, curve, state};
use crate::ops::sampler_step::{MOST_SLOTS, SamplerStep, column};
use crate::ops::variational::{Variational, column as variational};

/// Words of an image's random keys.
const KEYS: usize = 4;

/// One operand of an op.
#[derive(Clone, Copy, Debug)]
struct Operand {
    /// Elements; `None`: any number.
    len: Option<usize>,
    dtype: Kind,
    required: bool,
}

/// Element types that an operand may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Is(DType),
    /// f32, or bf16 where the op takes that.
    Float,
}

impl Kind {
    fn holds(self, dtype: DType) -> bool {
        match self {
            Kind::Is(is) => dtype == is,
            Kind::Float => matches!(dtype, DType::F32 | DType::BF16),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Kind::Is(dtype) => write!(f, "{dtype:?}"),
            Kind::Float => f.write_str("F32 or BF16"),
        }
    }
}

/// A product of sizes; one that overflows is longer than any tensor.
fn size(axes: &[usize]) -> usize {
    axes.iter().fold(1usize, |product, &axis| product.saturating_mul(axis))
}

/// Floats of that shape, required.
fn f(axes: &[usize]) -> Operand {
    Operand { len: Some(size(axes)), dtype: Kind::Float, required: true }
}

/// u32 of that shape, required.
fn u(axes: &[usize]) -> Operand {
    Operand { dtype: Kind::Is(DType::U32), ..f(axes) }
}

/// May be absent.
fn opt(operand: Operand) -> Operand {
    Operand { required: false, ..operand }
}

/// Must be absent.
const ABSENT: Operand = Operand { len: Some(usize::MAX), dtype: Kind::Float, required: false };

/// Inputs and outputs by position.
struct Signature(Vec<Operand>, Vec<Operand>);

impl Plan {
    /// Checks every op's descriptor against its operands, whoever put it into the plan: as
    /// many values as the descriptor says, indices and keys as integers, nothing missing,
    /// nothing that is read and written.
    ///
    /// # Errors
    /// The first op that does not agree, by name, with what it needs.
    pub fn check(&self) -> Result<()> {
        self.nodes.iter().try_for_each(|node| check(self, node))
    }

    /// Checks that the kernels' 32-bit indices reach all elements, where they are such.
    pub(crate) fn check_indices(&self) -> Result<()> {
        self.nodes.iter().try_for_each(|node| check_indices(&node.op))
    }
}

fn check(plan: &Plan, node: &Node) -> Result<()> {
    let op = node.op.name();
    let Signature(inputs, outputs) = signature(&node.op)?;
    let written: Vec<_> = node.outputs.iter().map(|w| w.map(|w| w.tensor)).collect();
    for (what, expected, found) in [("input", inputs, &node.inputs), ("output", outputs, &written)]
    {
        for i in 0..expected.len().max(found.len()) {
            let wanted = expected.get(i).copied().unwrap_or(ABSENT);
            let Some(id) = found.get(i).copied().flatten() else {
                if wanted.required {
                    return Err(Error::Usage(format!("{op}: {what} {i} is missing")));
                }
                continue;
            };
            let Some(tensor) = plan.tensors.get(id.index()) else {
                return Err(Error::Usage(format!("{op}: {what} {i} is not of this plan")));
            };
            if !wanted.dtype.holds(tensor.dtype)
                || wanted.len.is_some_and(|len| len != size(&tensor.shape))
            {
                let expected = match wanted.len {
                    Some(usize::MAX) => "nothing at this position".into(),
                    Some(len) => format!("{len} values of {}", wanted.dtype),
                    None => format!("values of {}", wanted.dtype),
                };
                let tensor = format!("{what} {i} `{}` ({:?})", tensor.name, tensor.dtype);
                let found = plan.shape(id).to_vec();
                return Err(Error::Shape { op, tensor, expected, found });
            }
        }
    }
    if written.iter().flatten().any(|w| node.inputs.contains(&Some(*w))) {
        return Err(Error::Usage(format!("{op}: a tensor is read and written")));
    }
    match &node.op {
        Op::GlobalNorm(o) => ranges(plan, node, &o.ranges),
        Op::AdamW(o) => ranges(plan, node, &o.ranges),
        _ => Ok(()),
    }
}

/// A descriptor that no kernel can follow.
fn expect(op: &Op, holds: bool, rule: &str) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::Usage(format!("{}: {rule}: {op:?}", op.name()))),
    }
}

/// Ranges lie in the arena, one after the other; all arenas have one length.
fn ranges(plan: &Plan, node: &Node, ranges: &[(usize, usize)]) -> Result<()> {
    let len = plan.tensor(node.input(0)).len();
    let mut end = 0;
    let holds = ranges.iter().all(|&(start, count)| {
        let follows = start >= end;
        end = start.saturating_add(count);
        follows && end <= len
    });
    expect(&node.op, holds, "ranges lie one behind the other in the arena")?;
    let adamw = matches!(node.op, Op::AdamW(_));
    let outputs = node.outputs.iter().flatten().filter(|_| adamw);
    let equal = outputs.into_iter().all(|w| plan.tensor(w.tensor).len() == len);
    expect(&node.op, equal, "all arenas have one length")
}

fn signature(op: &Op) -> Result<Signature> {
    let s = Signature;
    Ok(match op {
        Op::Conv2d(_) | Op::Conv2dBackwardData(_) | Op::Conv2dBackwardWeight(_) => {
            return convolution(op);
        }
        Op::Linear(o) | Op::LinearBackwardData(o) | Op::LinearBackwardWeight(o) => {
            return linear(op, o);
        }
        Op::LinearGroup(o) => return linear_group(op, o),
        Op::Norm(o) | Op::NormBackward(o) => return norm(op, o),
        Op::Attention(o) | Op::AttentionBackward(o) => return attention(op, o),
        Op::Activate(o) => s(vec![f(&[o.len])], vec![f(&[o.len])]),
        Op::ActivateBackward(o) => s(vec![f(&[o.len]); 2], vec![f(&[o.len])]),
        Op::Add(o) => s(vec![f(&[o.len]); 2], vec![f(&[o.len])]),
        Op::Scale(o) => s(vec![f(&[o.len])], vec![f(&[o.len])]),
        Op::ScaleRows(o) => {
            expect(op, o.column < o.columns, "the column is one of the columns")?;
            s(vec![f(&[o.n, o.len]), f(&[o.n, o.columns])], vec![f(&[o.n, o.len])])
        }
        Op::AddPerImage(o) | Op::ScalePerImage(o) => {
            let x = f(&[o.n, o.spatial, o.channels]);
            s(vec![x, f(&[o.n, o.channels])], vec![x])
        }
        Op::SumPerImage(o) => {
            let x = f(&[o.n, o.spatial, o.channels]);
            s(vec![x, opt(x)], vec![f(&[o.n, o.channels])])
        }
        Op::Concat(o) => {
            let y = f(&[o.rows, o.c_a.saturating_add(o.c_b)]);
            s(vec![f(&[o.rows, o.c_a]), f(&[o.rows, o.c_b])], vec![y])
        }
        Op::ConcatBackward(o) => {
            let d_y = f(&[o.rows, o.c_a.saturating_add(o.c_b)]);
            s(vec![d_y], vec![opt(f(&[o.rows, o.c_a])), opt(f(&[o.rows, o.c_b]))])
        }
        Op::Resample(o) | Op::ResampleBackward(o) => {
            expect(op, o.fits(), "the image is large enough for the method")?;
            let [oh, ow] = o.output_size();
            let (x, y) = (f(&[o.n, o.h, o.w, o.c]), f(&[o.n, oh, ow, o.c]));
            match op {
                Op::Resample(_) => s(vec![x], vec![y]),
                _ => s(vec![y], vec![x]),
            }
        }
        Op::Pooling(o) | Op::PoolingBackward(o) => {
            expect(op, o.fits(), "windows have a pixel inside")?;
            let [oh, ow] = o.output_size();
            let (x, y) = (f(&[o.n, o.h, o.w, o.c]), f(&[o.n, oh, ow, o.c]));
            match op {
                Op::Pooling(_) => s(vec![x], vec![y]),
                _ => s(vec![x, y], vec![x]),
            }
        }
        Op::SinusoidalEmbedding(o) => s(vec![f(&[o.n])], vec![f(&[o.n, o.dim])]),
        Op::FourierEmbedding(o) => s(vec![f(&[o.n]), f(&[o.half])], vec![f(&[o.n, 2, o.half])]),
        Op::Lookup(o) => s(vec![f(&[o.rows, o.dim]), u(&[o.n])], vec![f(&[o.n, o.dim])]),
        Op::LookupBackward(o) => s(vec![u(&[o.n]), f(&[o.n, o.dim])], vec![f(&[o.rows, o.dim])]),
        Op::Dropout(o) | Op::DropoutBackward(o) => {
            expect(op, (0.0..1.0).contains(&o.p), "p lies in [0, 1)")?;
            let x = f(&[o.n, o.len]);
            s(vec![x, u(&[o.n, KEYS])], vec![x])
        }
        Op::Empirical(o) => {
            expect(op, o.m > 0, "there are data")?;
            let x = f(&[o.n, o.len]);
            let inputs = vec![x, f(&[o.m, o.len]), f(&[o.n]), opt(f(&[o.n]))];
            s(inputs, vec![x, f(&[o.n, 2])])
        }
        Op::EmpiricalBackward(o) => {
            expect(op, o.m > 0, "there are data")?;
            let x = f(&[o.n, o.len]);
            let log_sum = f(&[o.n, 2]);
            s(vec![x, f(&[o.m, o.len]), f(&[o.n]), opt(f(&[o.n])), x, log_sum, x], vec![x])
        }
        Op::Noising(o) => return noising(op, o),
        Op::Loss(o) | Op::LossBackward(o) => return loss(op, o),
        Op::Variational(o) | Op::VariationalBackward(o) => return bound(op, o),
        Op::AxisMap(o) => {
            let (x, y) = (f(&[o.outer, o.from, o.inner]), f(&[o.outer, o.to, o.inner]));
            s(vec![x, f(&[o.to, o.from])], vec![y])
        }
        Op::GlobalNorm(_) => s(vec![Operand { len: None, ..f(&[]) }], vec![f(&[1])]),
        Op::AdamW(_) => {
            let arena = Operand { len: None, ..f(&[]) };
            let half = opt(Operand { len: None, dtype: Kind::Is(DType::BF16), ..f(&[]) });
            let inputs = vec![arena, f(&[1]), f(&[control::COLUMNS])];
            s(inputs, vec![arena, arena, arena, arena, half])
        }
        Op::PackWeight(o) => s(vec![f(&[o.weight_len()])], vec![f(&[o.packed_len()])]),
        Op::Cast(o) => s(vec![f(&[o.len])], vec![f(&[o.len])]),
        Op::SamplerQuantile(_)
        | Op::SamplerStep(_)
        | Op::SamplerNorms(_)
        | Op::SamplerLangevin(_)
        | Op::SamplerError(_)
        | Op::SamplerRk45(_)
        | Op::SamplerBlend(_)
        | Op::SamplerEstimate(_)
        | Op::SamplerEstimateBackward(_)
        | Op::SamplerResidual(_) => return sampler(op),
    })
}

/// The kernels of convolutions and linear layers index by `int`.
fn check_indices(op: &Op) -> Result<()> {
    let lens = match op {
        Op::Conv2d(o) | Op::Conv2dBackwardData(o) | Op::Conv2dBackwardWeight(o) => {
            [o.x_len(), o.y_len(), o.weight_len()]
        }
        Op::Linear(o) | Op::LinearBackwardData(o) | Op::LinearBackwardWeight(o) => {
            [size(&[o.rows, o.c_in]), size(&[o.rows, o.c_out]), size(&[o.c_out, o.c_in])]
        }
        _ => return Ok(()),
    };
    expect(op, fits_int(&lens), "fewer than 2^31 elements")
}

/// What is counted by `int`.
fn fits_int(lens: &[usize]) -> bool {
    lens.iter().all(|&len| i32::try_from(len).is_ok())
}

fn convolution(op: &Op) -> Result<Signature> {
    let (Op::Conv2d(o) | Op::Conv2dBackwardData(o) | Op::Conv2dBackwardWeight(o)) = op else {
        unreachable!("a convolution")
    };
    let Conv2d { n, h, w, c_in, c_out, kernel, options } = *o;
    let p = options.padding;
    let whole = kernel.iter().chain(&options.stride).chain(&options.dilation).all(|&v| v > 0);
    let groups = options.groups;
    expect(op, whole && groups > 0, "kernel, stride, dilation and groups are at least 1")?;
    let divides = c_in.is_multiple_of(groups) && c_out.is_multiple_of(groups);
    expect(op, divides, "groups divide the channels")?;
    let reach = |axis: usize| options.dilation[axis].saturating_mul(kernel[axis] - 1);
    let padded = [
        size(&[h]).saturating_add(p.top).saturating_add(p.bottom),
        w.saturating_add(p.left).saturating_add(p.right),
    ];
    expect(op, (0..2).all(|a| reach(a) < padded[a]), "the padded image holds the kernel")?;
    expect(op, fits_int(&padded), "fewer than 2^31 positions")?;
    let [oh, ow] = o.output_size();
    let (x_len, y_len) = (size(&[n, h, w, c_in]), size(&[n, oh, ow, c_out]));
    let weight_len = size(&[c_out, kernel[0], kernel[1], c_in / groups]);
    let (x, y, weight) = (f(&[x_len]), f(&[y_len]), f(&[weight_len]));
    Ok(match op {
        Op::Conv2d(_) => {
            let mut inputs = vec![ABSENT; RESIDUAL + 1];
            (inputs[0], inputs[1], inputs[2]) = (x, weight, opt(f(&[c_out])));
            (inputs[PER_IMAGE], inputs[RESIDUAL]) = (opt(f(&[n, c_out])), opt(y));
            Signature(inputs, vec![y])
        }
        Op::Conv2dBackwardData(_) => Signature(vec![y, weight], vec![x]),
        _ => Signature(vec![x, y], vec![opt(weight), opt(f(&[c_out]))]),
    })
}

fn linear(op: &Op, o: &Linear) -> Result<Signature> {
    let lens = [size(&[o.rows, o.c_in]), size(&[o.rows, o.c_out]), size(&[o.c_out, o.c_in])];
    let activates = o.activation.is_none() || o.fills_chunks();
    expect(op, activates, "an activation follows where channels are multiples of 8")?;
    let ([x, y, weight], bias) = (lens.map(|len| f(&[len])), opt(f(&[o.c_out])));
    Ok(match op {
        Op::Linear(_) => Signature(vec![x, weight, bias], vec![y]),
        Op::LinearBackwardData(_) => Signature(vec![y, weight], vec![x]),
        _ => Signature(vec![x, y], vec![opt(weight), bias]),
    })
}

fn norm(op: &Op, o: &Norm) -> Result<Signature> {
    if let Domain::Group(groups) = o.domain {
        let divides = groups > 0 && o.channels.is_multiple_of(groups) && o.channels > 0;
        expect(op, divides, "groups divide the channels")?;
    }
    expect(op, fits_int(&[o.channels]), "fewer than 2^31 channels")?;
    let (x, vector) = (f(&[o.n, o.spatial, o.channels]), opt(f(&[o.channels])));
    let (pairs, statistic) = (opt(f(&[o.n, 2, o.channels])), f(&[o.n, o.domains()]));
    Ok(match op {
        Op::Norm(_) => Signature(vec![x, vector, vector, pairs], vec![x, statistic, statistic]),
        _ => Signature(
            vec![x, vector, vector, pairs, statistic, statistic, x],
            vec![opt(x), vector, vector, pairs],
        ),
    })
}

fn attention(op: &Op, o: &Attention) -> Result<Signature> {
    expect(op, fits_int(&[o.heads, o.head_dim]), "fewer than 2^31 channels")?;
    let q = f(&[o.n, o.s_q, o.heads, o.head_dim]);
    let k = f(&[o.n, o.s_kv, o.heads, o.head_dim]);
    let lse = f(&[o.n, o.heads, o.s_q]);
    Ok(match op {
        Op::Attention(_) => Signature(vec![q, k, k], vec![q, lse]),
        _ => Signature(vec![q, k, k, q, lse, q], vec![opt(q), opt(k), opt(k)]),
    })
}

/// The clean images of an op that may pick them itself, and what picks.
fn images(op: &Op, n: usize, len: usize, picks: Option<Pick>) -> Result<(Operand, Operand)> {
    let Some(p) = picks else { return Ok((f(&[n, len]), ABSENT)) };
    let row = size(&[p.width, p.channels]);
    let whole = p.rows > 0 && row > 0 && len.is_multiple_of(row);
    expect(op, whole, "an image of the set has whole rows of pixels")?;
    let dtype = if p.levels > 0 { DType::U8 } else { DType::F32 };
    let set = Operand { dtype: Kind::Is(dtype), ..f(&[p.rows, len]) };
    Ok((set, u(&[n, pick::COLUMNS])))
}

fn linear_group(op: &Op, o: &LinearGroup) -> Result<Signature> {
    let count = o.columns.len();
    expect(op, (1..=LinearGroup::MOST).contains(&count), "a launch takes 1 to 24 layers")?;
    let sizes = [o.rows, o.c_in].into_iter().chain(o.columns.iter().copied());
    expect(op, sizes.into_iter().all(|size| size < 1 << 30), "sizes fit 32 bits")?;
    let x = f(&[o.rows, o.c_in]);
    let weight = |c: usize| f(&[c, o.c_in]);
    let columns = || o.columns.iter().copied();
    Ok(match o.pass {
        GroupPass::Forward => {
            let layers = columns().flat_map(|c| [weight(c), opt(f(&[c]))]);
            let outputs = columns().map(|c| f(&[o.rows, c])).collect();
            Signature([x].into_iter().chain(layers).collect(), outputs)
        }
        GroupPass::BackwardData => {
            let layers = columns().flat_map(|c| [f(&[o.rows, c]), weight(c)]);
            Signature(layers.collect(), vec![x])
        }
        GroupPass::BackwardWeight => {
            let d_y = columns().map(|c| f(&[o.rows, c]));
            let outputs = columns().flat_map(|c| [opt(weight(c)), opt(f(&[c]))]).collect();
            Signature([x].into_iter().chain(d_y).collect(), outputs)
        }
    })
}

fn noising(op: &Op, o: &Noising) -> Result<Signature> {
    let (set, picks) = images(op, o.n, o.len, o.pick)?;
    let x_t = f(&[o.n, o.len]);
    let x0 = if o.pick.is_some() { opt(x_t) } else { ABSENT };
    let inputs = vec![set, f(&[o.n, coefficient::COLUMNS]), u(&[o.n, KEYS]), picks];
    Ok(Signature(inputs, vec![x_t, x0]))
}

fn loss(op: &Op, o: &Loss) -> Result<Signature> {
    let (set, picks) = images(op, o.n, o.len, o.pick)?;
    let prediction = f(&[o.n, o.len]);
    let rows = f(&[o.n, coefficient::COLUMNS]);
    let inputs = vec![prediction, set, rows, opt(u(&[o.n, KEYS])), picks];
    Ok(match op {
        Op::Loss(_) => Signature(inputs, vec![f(&[o.n])]),
        _ => Signature(inputs, vec![prediction]),
    })
}

fn bound(op: &Op, o: &Variational) -> Result<Signature> {
    let whole = o.channels > 0 && o.len.is_multiple_of(o.channels);
    expect(op, whole, "an image has whole pixels")?;
    let copies = if o.learned { 2 } else { 1 };
    let prediction = f(&[o.n, o.len, copies]);
    let rows = f(&[o.n, variational::COLUMNS]);
    let inputs = vec![prediction, f(&[o.n, o.len]), rows, u(&[o.n, KEYS])];
    Ok(match op {
        Op::Variational(_) => Signature(inputs, vec![f(&[o.n])]),
        _ => Signature(inputs, vec![prediction]),
    })
}

/// Prediction, table and stage of a sampler's step; its sizes are checked.
fn step(op: &Op, o: &SamplerStep) -> Result<[Operand; 3]> {
    let slots = (1..=MOST_SLOTS).contains(&o.slots);
    expect(op, slots && o.stages > 0, "1 to 7 slots and at least one stage")?;
    let channels = o.channels > 0 && o.prediction_channels >= o.channels;
    expect(op, channels, "the prediction has at least the state's channels")?;
    let image = size(&[o.spatial, o.prediction_channels]);
    expect(op, u32::try_from(image).is_ok(), "images of fewer than 2^32 elements")?;
    let rows = if o.per_image { o.n } else { 1 };
    Ok([
        f(&[o.copies(), o.n, o.spatial, o.prediction_channels]),
        f(&[o.stages, rows, column::COLUMNS]),
        u(&[1]),
    ])
}

fn sampler(op: &Op) -> Result<Signature> {
    let s = Signature;
    let state_of = |o: &SamplerStep| f(&[o.n, o.spatial, o.channels]);
    Ok(match op {
        Op::SamplerStep(o) => {
            let [prediction, table, stage] = step(op, o)?;
            let state = state_of(o);
            let label =
                if o.label_is_index { u(&[o.copies(), o.n]) } else { f(&[o.copies(), o.n]) };
            // The stage is an input, or the number that the step counts up.
            let inputs =
                vec![prediction, table, opt(stage), u(&[o.n, KEYS]), opt(state), opt(f(&[o.n]))];
            let input = opt(f(&[o.copies(), o.n, o.spatial, o.channels]));
            let mut outputs = vec![label, input];
            outputs.extend(vec![state; o.slots]);
            outputs.extend([opt(stage); 2]);
            s(inputs, outputs)
        }
        Op::SamplerQuantile(o) => {
            let mut inputs = step(op, &o.step)?.to_vec();
            inputs.extend(vec![state_of(&o.step); o.step.slots]);
            let ratio = (0.0..=1.0).contains(&o.ratio) && !o.step.is_empty();
            expect(op, ratio, "the ratio lies in [0, 1] and images have elements")?;
            s(inputs, vec![f(&[o.step.n])])
        }
        Op::SamplerNorms(o) => {
            let mut inputs = step(op, &o.step)?.to_vec();
            let (n, state) = (o.step.n, state_of(&o.step));
            inputs.extend([u(&[n, KEYS]), opt(state), f(&[o.step.stages])]);
            inputs.extend(vec![state; o.step.slots]);
            s(inputs, vec![f(&[n, 2])])
        }
        Op::SamplerLangevin(o) => {
            expect(op, o.stages > 0, "at least one stage")?;
            let table = f(&[o.stages, column::COLUMNS]);
            let inputs = vec![table, u(&[1]), f(&[o.stages]), f(&[o.n, 2])];
            s(inputs, vec![f(&[2, o.n, column::COLUMNS])])
        }
        Op::SamplerError(o) => {
            let x = f(&[o.n, o.len]);
            s(vec![u(&[1]), x, x, x], vec![f(&[o.n])])
        }
        Op::SamplerRk45(o) => {
            expect(op, o.nodes >= 2, "a curve has two rows")?;
            let table = f(&[STAGES, column::COLUMNS]);
            let inputs = vec![table, u(&[1]), f(&[o.nodes, curve::COLUMNS]), f(&[o.n])];
            let rows = f(&[2, o.n, column::COLUMNS]);
            s(inputs, vec![rows, f(&[o.n, state::COLUMNS]), f(&[1])])
        }
        Op::SamplerBlend(o) => {
            expect(op, o.stages > 0, "at least one stage")?;
            let x = f(&[o.n, o.len]);
            let inputs = vec![f(&[o.stages, blend::COLUMNS]), u(&[1]), u(&[o.n, KEYS]), x, x];
            s(inputs, vec![x])
        }
        Op::SamplerEstimate(o) => {
            let mut inputs = step(op, &o.step)?.to_vec();
            let state = state_of(&o.step);
            inputs.push(state);
            s(inputs, vec![state])
        }
        Op::SamplerEstimateBackward(o) => {
            let [prediction, table, stage] = step(op, &o.step)?;
            let state = state_of(&o.step);
            s(vec![state, table, stage], vec![opt(prediction), opt(state)])
        }
        Op::SamplerResidual(o) => {
            let z = f(&[o.n, o.len]);
            s(vec![z, z, opt(z)], vec![z, f(&[o.n])])
        }
        other => unreachable!("{} is not a sampler's", other.name()),
    })
}
