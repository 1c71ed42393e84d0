//! The bare network on given tensors: prediction, and for a given target the
//! mean squared error and its gradient by every weight. No c_in, no clipping, no
//! dropout.

use crate::backend::{Engine, Loaded, Requirement, WeightSet};
use crate::error::{Error, Result};
use crate::model::{Conditioning, Network, NetworkInputs};
use crate::ops::noising::coefficient;
use crate::plan::{DType, Mode, Plan, Space, TensorId, Wrt};

/// Largest batch of a plan without gradients: more images go in several runs.
const MAX_BATCH: usize = 64;

/// What the network reads beside x.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// Time, `[n]`, handed to the time embedding as it is.
    pub t: Vec<f32>,
    /// Class `[n]`, where the network has classes: a row of the table, or the
    /// number that is embedded.
    pub class: Option<Vec<i64>>,
    /// Class vectors `[n, dim]` (`class_embed_type: identity`).
    pub class_vector: Option<Vec<f32>>,
}

/// Loss and gradients, in memory order; names by the network's parameters.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Mean squared error over all elements.
    pub loss: f64,
    /// The whole gradient arena.
    pub arena: Vec<f32>,
}

/// Uploads a conditioning input from position `first` on, `n` images.
pub(crate) fn upload_condition(
    engine: &mut Engine,
    program: &Loaded,
    id: TensorId,
    form: Conditioning,
    what: &str,
    values: &[f32],
) -> Result<()> {
    match form {
        Conditioning::Absent => Ok(()),
        Conditioning::Value | Conditioning::Vector(_) => engine.set(program, id, values),
        Conditioning::Row(rows) => {
            let mut indices = Vec::with_capacity(values.len());
            for &v in values {
                if v < 0.0 || v.fract() != 0.0 || v >= rows as f32 {
                    return Err(Error::Usage(format!(
                        "{what} {v} is not a row of the network's table: whole numbers from 0 to {}",
                        rows - 1
                    )));
                }
                indices.push(v as u32);
            }
            engine.set_u32(program, id, &indices)
        }
    }
}

struct Tensors {
    inputs: NetworkInputs,
    prediction: TensorId,
}

fn forward(plan: &mut Plan, network: &Network, n: usize, size: [usize; 2]) -> Result<Tensors> {
    let inputs = network.inputs(plan, n, size, false);
    let prediction = network.build(plan, &inputs)?;
    plan.keep(prediction);
    Ok(Tensors { inputs, prediction })
}

/// Checks that conditions fit the network and gives the class values of all
/// images as floats, `dim` an image.
fn class_values(network: &Network, conditions: &Conditions, n: usize) -> Result<(Vec<f32>, usize)> {
    let missing =
        |what: &str| Error::Usage(format!("the network needs {what}; the input has none"));
    let (values, dim) = match network.class_input() {
        Conditioning::Absent => return Ok((Vec::new(), 0)),
        Conditioning::Value | Conditioning::Row(_) => {
            let class = conditions.class.as_ref().ok_or_else(|| missing("`class` [n]"))?;
            (class.iter().map(|&c| c as f32).collect(), 1)
        }
        Conditioning::Vector(dim) => {
            let vector = conditions.class_vector.as_ref();
            (vector.ok_or_else(|| missing(&format!("`class` [n, {dim}]")))?.clone(), dim)
        }
    };
    if values.len() != n * dim {
        return Err(Error::Usage(format!("`class` has {} values for {n} images", values.len())));
    }
    Ok((values, dim))
}

fn check(network: &Network, shape: [usize; 4], x: &[f32], conditions: &Conditions) -> Result<()> {
    let [n, h, w, c] = shape;
    if n == 0 || x.len() != n * h * w * c {
        return Err(Error::Shape {
            op: "predict",
            tensor: "x".into(),
            expected: "at least one image, [n, h, w, c]".into(),
            found: shape.to_vec(),
        });
    }
    if c != network.in_channels() {
        return Err(Error::Shape {
            op: "predict",
            tensor: "x".into(),
            expected: format!("{} channels", network.in_channels()),
            found: shape.to_vec(),
        });
    }
    if conditions.t.len() != n {
        return Err(Error::Usage(format!("`t` has {} values for {n} images", conditions.t.len())));
    }
    Ok(())
}

/// What predictions of images `[n, h, w, c]` need, with gradients of a loss or without.
/// On the host that is the weights, the images and what becomes of them.
pub fn requirement(
    engine: &Engine,
    network: &Network,
    [n, h, w, c]: [usize; 4],
    gradients: bool,
) -> Result<Requirement> {
    let arena_len = network.parameters()?.arena_len();
    let values = n * h * w * (c + network.out_channels() * if gradients { 2 } else { 1 });
    let (program, arenas) = match gradients {
        true => (engine.lower(gradient_plan(network, n.max(1), [h, w])?.0)?, 2),
        false => {
            let mut plan = Plan::new();
            forward(&mut plan, network, MAX_BATCH.min(n).max(1), [h, w])?;
            (engine.lower(plan)?, 1)
        }
    };
    let need = Requirement::of(arena_len, gradients, &[&program]);
    Ok(Requirement { staging: 4 * (arenas * arena_len + values), ..need })
}

/// Tensors of a plan that ends in gradients.
struct GradientTensors {
    of: Tensors,
    target: TensorId,
    coefficients: TensorId,
    loss: TensorId,
}

fn gradient_plan(network: &Network, n: usize, size: [usize; 2]) -> Result<(Plan, GradientTensors)> {
    let mut plan = Plan::new();
    let of = forward(&mut plan, network, n, size)?;
    let target = plan.input("target", &[n, size[0], size[1], network.out_channels()], DType::F32);
    let coefficients = plan.input("coefficients", &[n, coefficient::COLUMNS], DType::F32);
    let loss = plan.loss(of.prediction, target, coefficients, None, 1.0 / n as f32)?;
    plan.keep(loss);
    plan.derive(&[(loss, None)], Wrt::Parameters(Mode::Write))?;
    Ok((plan, GradientTensors { of, target, coefficients, loss }))
}

/// The network's prediction for x `[n, h, w, c]`: `[n, h, w, out]`.
pub fn predict(
    engine: &mut Engine,
    network: &Network,
    weights: WeightSet,
    shape: [usize; 4],
    x: &[f32],
    conditions: &Conditions,
) -> Result<Vec<f32>> {
    check(network, shape, x, conditions)?;
    let [n, h, w, c] = shape;
    let (class, class_dim) = class_values(network, conditions, n)?;
    let (in_len, out_len) = (h * w * c, h * w * network.out_channels());
    let mut out = vec![0f32; n * out_len];
    let mut from = 0;
    while from < n {
        let batch = MAX_BATCH.min(n - from);
        let mut plan = Plan::new();
        let tensors = forward(&mut plan, network, batch, [h, w])?;
        let program = engine.lower(plan)?;
        let loaded = engine.load(program, weights)?;
        engine.refresh(&loaded)?;
        while from < n && n - from >= batch {
            let to = from + batch;
            engine.set(&loaded, tensors.inputs.x, &x[from * in_len..to * in_len])?;
            let t = &conditions.t[from..to];
            upload_condition(engine, &loaded, tensors.inputs.t, network.time_input(), "time", t)?;
            if let Some(id) = tensors.inputs.class {
                let class = &class[from * class_dim..to * class_dim];
                upload_condition(engine, &loaded, id, network.class_input(), "class", class)?;
            }
            engine.run(&loaded)?;
            engine.get(&loaded, tensors.prediction, &mut out[from * out_len..to * out_len])?;
            from = to;
        }
        engine.unload(loaded);
    }
    Ok(out)
}

/// Prediction, mean squared error against `target`, and its gradients. The
/// engine must have been made for training.
pub fn predict_with_gradients(
    engine: &mut Engine,
    network: &Network,
    shape: [usize; 4],
    x: &[f32],
    conditions: &Conditions,
    target: &[f32],
) -> Result<(Vec<f32>, Gradients)> {
    check(network, shape, x, conditions)?;
    let [n, h, w, _] = shape;
    let (class, _) = class_values(network, conditions, n)?;
    let out_shape = [n, h, w, network.out_channels()];
    if target.len() != out_shape.iter().product::<usize>() {
        return Err(Error::Shape {
            op: "predict",
            tensor: "target".into(),
            expected: format!("{out_shape:?} in memory order"),
            found: vec![target.len()],
        });
    }
    let (plan, tensors) = gradient_plan(network, n, [h, w])?;
    let GradientTensors { of: tensors, target: target_id, coefficients, loss } = tensors;
    let program = engine.lower(plan)?;
    let loaded = engine.load(program, WeightSet::Raw)?;
    engine.refresh(&loaded)?;
    engine.set(&loaded, tensors.inputs.x, x)?;
    let t = &conditions.t;
    upload_condition(engine, &loaded, tensors.inputs.t, network.time_input(), "time", t)?;
    if let Some(id) = tensors.inputs.class {
        upload_condition(engine, &loaded, id, network.class_input(), "class", &class)?;
    }
    engine.set(&loaded, target_id, target)?;
    let mut rows = vec![0f32; n * coefficient::COLUMNS];
    for row in rows.chunks_exact_mut(coefficient::COLUMNS) {
        row[coefficient::TARGET_X0] = 1.0;
        row[coefficient::WEIGHT] = 1.0;
    }
    engine.set(&loaded, coefficients, &rows)?;
    engine.run(&loaded)?;
    let mut prediction = vec![0f32; target.len()];
    engine.get(&loaded, tensors.prediction, &mut prediction)?;
    let mut losses = vec![0f32; n];
    engine.get(&loaded, loss, &mut losses)?;
    let loss = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / n as f64;
    let arena = engine.get_arena(Space::Gradients)?;
    engine.unload(loaded);
    Ok((prediction, Gradients { loss, arena }))
}
