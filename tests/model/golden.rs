//! Small networks with the predictions and gradients that diffusers and PyTorch give
//! them in f64: tests/golden/unet.py and mlp.py, whose hash for weights and inputs is
//! repeated here.

use std::collections::HashMap;
use std::path::Path;

use langevin::backend::{Backend, Engine, Loaded, WeightSet};
use langevin::model::{Conditioning, Network};
use langevin::ops::noising::coefficient;
use langevin::plan::{DType, Mode, Parameter, Plan, Space, TensorId, Wrt};
use safetensors::SafeTensors;

/// Gradients of more elements are stored as every `STRIDE`-th.
pub const LARGE: usize = 600;
pub const STRIDE: usize = 7;

/// Uniform in [-1, 1), by the tensor's name.
pub fn values(name: &str, len: usize) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    (1..=len as u64)
        .map(|e| {
            let mut z = seed.wrapping_add(e.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (z >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// A weight in disk order.
fn weight(p: &Parameter) -> Vec<f32> {
    let u = values(&p.name, p.len());
    let map = |f: &dyn Fn(f32) -> f32| u.iter().map(|&u| f(u)).collect();
    let fan_in: usize = p.disk_shape[1..].iter().product();
    match (p.name.as_str(), p.disk_shape.len()) {
        ("time_proj.weight", 1) => map(&|u| u * 4.0),
        ("time_proj.weight" | "class_embedding.weight", _) => u,
        (_, 2..) => {
            let scale = (3.0 / fan_in as f64).sqrt() as f32;
            map(&|u| u * scale)
        }
        (name, _) if name.ends_with(".weight") => map(&|u| u * 0.25 + 1.0),
        _ => map(&|u| u * 0.25),
    }
}

pub fn nhwc(nchw: &[f32], [n, c, h, w]: [usize; 4]) -> Vec<f32> {
    let mut out = vec![0.0; nchw.len()];
    for i in 0..n * c {
        for s in 0..h * w {
            out[((i / c) * h * w + s) * c + i % c] = nchw[i * h * w + s];
        }
    }
    out
}

pub struct Golden {
    pub network: Network,
    pub tensors: HashMap<String, Vec<f32>>,
    /// n, c, h, w of x and of the prediction.
    pub x_shape: [usize; 4],
    pub y_shape: [usize; 4],
}

impl Golden {
    pub fn read(name: &str) -> Self {
        let prefix = if name.starts_with("mlp-") { "" } else { "unet-" };
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("tests/golden/{prefix}{name}.safetensors"));
        let bytes = std::fs::read(&path).expect("golden file");
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a safetensors header");
        let metadata = metadata.metadata().clone().expect("metadata");
        let json = serde_json::from_str(&metadata["config"]).expect("valid JSON");
        let network = Network::from_json(&json).expect("valid configuration");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let shape = |name: &str| -> [usize; 4] {
            file.tensor(name).expect("present").shape().try_into().expect("four axes")
        };
        let (x_shape, y_shape) = (shape("d_x"), shape("prediction"));
        let tensors = file
            .iter()
            .map(|(name, view)| {
                let values = view.data().chunks_exact(4);
                let values = values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                (name.to_string(), values)
            })
            .collect();
        Golden { network, tensors, x_shape, y_shape }
    }
}

/// A network with its loss on a backend, weights uploaded.
pub struct Run {
    engine: Engine,
    pub loaded: Loaded,
    /// What is uploaded before each run.
    inputs: Vec<(TensorId, Upload)>,
    pub prediction: TensorId,
    pub loss: TensorId,
    /// The gradient by x, if that is what was derived.
    pub d_x: Option<TensorId>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Derive {
    Nothing,
    Parameters(Mode),
    Input,
}

impl Run {
    pub fn new(backend: Box<dyn Backend>, golden: &Golden, derive: Derive) -> Self {
        let network = golden.network.clone();
        network.validate().expect("valid");
        let [n, c, h, w] = golden.x_shape;
        let [_, c_out, ..] = golden.y_shape;
        let mut plan = Plan::new();
        let inputs = network.inputs(&mut plan, n, [h, w], false);
        let prediction = network.build(&mut plan, &inputs).expect("builds");
        let target = plan.input("target", &[n, h, w, c_out], DType::F32);
        let coefficients = plan.input("coefficients", &[n, coefficient::COLUMNS], DType::F32);
        let loss =
            plan.loss(prediction, target, coefficients, None, 1.0 / n as f32).expect("shapes fit");
        plan.keep(prediction);
        plan.keep(loss);
        match derive {
            Derive::Nothing => {}
            Derive::Parameters(mode) => {
                plan.derive(&[(loss, None)], Wrt::Parameters(mode)).expect("derives");
            }
            Derive::Input => {
                plan.derive(&[(loss, None)], Wrt::Tensors(vec![inputs.x])).expect("derives");
            }
        }
        let d_x = if derive == Derive::Input { plan.gradient(inputs.x) } else { None };
        let parameters = plan.parameters.clone();
        let mut engine = Engine::new(backend, parameters.arena_len(), true).expect("memory");
        let program = engine.lower(plan).expect("lowers");
        let loaded = engine.load(program, WeightSet::Raw).expect("memory");
        let mut arena = vec![0.0; parameters.arena_len()];
        for p in &parameters.entries {
            p.from_disk(&weight(p), &mut arena[p.offset..p.offset + p.len()]);
        }
        engine.set_arena(Space::Parameters, &arena).expect("upload");
        engine.refresh(&loaded).expect("refresh");
        let mut row = [0.0; coefficient::COLUMNS];
        (row[coefficient::TARGET_X0], row[coefficient::WEIGHT]) = (1.0, 1.0);
        let x = nhwc(&values("x", n * c * h * w), golden.x_shape);
        let targets = nhwc(&values("target", n * c_out * h * w), golden.y_shape);
        let mut uploads = vec![
            (inputs.x, Upload::Values(x)),
            (inputs.t, Upload::of(network.time_input(), &golden.tensors["t"])),
            (target, Upload::Values(targets)),
            (coefficients, Upload::Values(row.repeat(n))),
        ];
        if let Some(class) = inputs.class {
            let form = network.class_input();
            let given = match form {
                Conditioning::Vector(dim) => values("class", n * dim),
                _ => golden.tensors["class"].clone(),
            };
            uploads.push((class, Upload::of(form, &given)));
        }
        Run { engine, loaded, inputs: uploads, prediction, loss, d_x }
    }

    pub fn run(&mut self) {
        for (id, values) in &self.inputs {
            match values {
                Upload::Values(v) => self.engine.set(&self.loaded, *id, v).expect("upload"),
                Upload::Rows(v) => self.engine.set_u32(&self.loaded, *id, v).expect("upload"),
            }
        }
        self.engine.run(&self.loaded).expect("runs");
    }

    pub fn get(&mut self, id: TensorId) -> Vec<f32> {
        let mut values = vec![f32::NAN; self.loaded.program.plan.tensor(id).len()];
        self.engine.get(&self.loaded, id, &mut values).expect("download");
        values
    }

    /// Gradients of the trainable weights, in disk order, by name.
    pub fn gradients(&mut self) -> Vec<(String, Vec<f32>)> {
        let arena = self.engine.get_arena(Space::Gradients).expect("download");
        let parameters = &self.loaded.program.plan.parameters;
        let trainable = parameters.entries.iter().filter(|p| p.trainable);
        trainable
            .map(|p| {
                let mut disk = vec![0.0; p.len()];
                p.to_disk(&arena[p.offset..p.offset + p.len()], &mut disk);
                (p.name.clone(), disk)
            })
            .collect()
    }
}

enum Upload {
    Values(Vec<f32>),
    Rows(Vec<u32>),
}

impl Upload {
    fn of(form: Conditioning, given: &[f32]) -> Self {
        match form {
            Conditioning::Row(_) => Upload::Rows(given.iter().map(|&v| v as u32).collect()),
            _ => Upload::Values(given.to_vec()),
        }
    }
}

pub fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |m, v| f64::from(v.abs()).max(m))
}
