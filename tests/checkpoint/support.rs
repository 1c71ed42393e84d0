//! A small set of weights and a whole checkpoint around it.

use std::path::{Path, PathBuf};

use langevin::checkpoint::diffusers::Pipeline;
use langevin::checkpoint::training::{Cursor, Progress, TrainingState};
use langevin::plan::{DiskLayout, Init, Parameters, Plan};
use serde_json::{Value, json};

/// A convolution, vectors, a linear layer and a frozen table.
pub fn parameters() -> Parameters {
    let mut plan = Plan::new();
    let init = Init::Constant(0.0);
    plan.parameter("conv_in.weight", &[5, 3, 3, 3], DiskLayout::Convolution, init, true);
    plan.parameter("conv_in.bias", &[5], DiskLayout::Same, init, true);
    plan.parameter("time_proj.weight", &[7], DiskLayout::Same, init, false);
    plan.parameter("mid_block.attentions.0.to_q.weight", &[5, 5], DiskLayout::Same, init, true);
    plan.parameter("conv_out.weight", &[3, 5, 1, 1], DiskLayout::Convolution, init, true);
    plan.parameters
}

/// An arena of distinct values; padding is 0, as the engine keeps it.
pub fn arena(parameters: &Parameters, salt: u32) -> Vec<f32> {
    let mut arena = vec![0.0; parameters.arena_len()];
    for p in &parameters.entries {
        for (i, v) in arena[p.offset..][..p.len()].iter_mut().enumerate() {
            // Denormals, negative zero and ordinary values.
            *v = match i % 11 {
                3 => -0.0,
                7 => f32::from_bits(1 + i as u32),
                _ => (salt as f32 + 0.1) * ((p.offset + i) as f32 - 17.3) / 97.0,
            };
        }
    }
    arena
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Everything a checkpoint of `step` holds, owned.
pub struct Sample {
    pub parameters: Parameters,
    pub network: Value,
    pub scheduler: Value,
    pub extras: Value,
    pub average: Vec<f32>,
    pub raw: Vec<f32>,
    pub first: Vec<f32>,
    pub second: Vec<f32>,
    pub progress: Progress,
}

impl Sample {
    pub fn new(step: u64) -> Self {
        let parameters = parameters();
        let salt = step as u32;
        let (average, raw) = (arena(&parameters, salt), arena(&parameters, salt + 1));
        let mut moments = [arena(&parameters, salt + 2), arena(&parameters, salt + 3)];
        for moment in &mut moments {
            for p in parameters.entries.iter().filter(|p| !p.trainable) {
                moment[p.offset..][..p.len()].fill(0.0);
            }
        }
        let [first, second] = moments;
        Self {
            network: json!({"_class_name": "UNet2DModel", "sample_size": 8}),
            scheduler: json!({"_class_name": "DDPMScheduler", "num_train_timesteps": 100}),
            extras: json!({"process": "ddpm"}),
            average,
            raw,
            first,
            second,
            progress: Progress {
                step,
                seed: u64::MAX - 1,
                cursor: Cursor { epoch: 3, position: (1 << 60) + 1 },
            },
            parameters,
        }
    }

    pub fn pipeline(&self) -> Pipeline<'_> {
        Pipeline {
            network_config: &self.network,
            scheduler_config: &self.scheduler,
            extras: &self.extras,
            parameters: &self.parameters,
            average: &self.average,
            raw: Some(&self.raw),
            training: Some(TrainingState {
                progress: &self.progress,
                first_moments: &self.first,
                second_moments: &self.second,
            }),
        }
    }
}

/// All files under a folder, with their bytes, sorted by path.
pub fn snapshot(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(snapshot(&path));
        } else {
            out.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    out.sort();
    out
}

/// Names of a folder's entries, hidden ones included, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A file or folder of tests/golden/checkpoint.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/checkpoint").join(name)
}

/// The golden network's weights, as its shapes say.
pub fn golden_parameters() -> Parameters {
    let text = std::fs::read_to_string(golden("shapes.json")).unwrap();
    let shapes: std::collections::BTreeMap<String, Vec<usize>> =
        serde_json::from_str(&text).unwrap();
    let mut plan = Plan::new();
    for (name, shape) in &shapes {
        let layout = if shape.len() == 4 { DiskLayout::Convolution } else { DiskLayout::Same };
        plan.parameter(name, shape, layout, Init::Constant(0.0), true);
    }
    plan.parameters
}

/// The golden weights in memory, read by the safetensors library alone.
pub fn golden_arena(parameters: &Parameters) -> Vec<f32> {
    let bytes = std::fs::read(golden("reference.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut arena = vec![0.0; parameters.arena_len()];
    for p in &parameters.entries {
        let tensor = file.tensor(&p.name).unwrap();
        let values: Vec<f32> = tensor
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        p.from_disk(&values, &mut arena[p.offset..][..p.len()]);
    }
    arena
}

/// A safetensors file out of a header in JSON and its data.
pub fn raw_safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Runs one test of this binary in another process, under a shell line in which
/// `"$@"` stands for it; the test finds `folder` in [`child_folder`].
pub fn run_child(test: &str, folder: &Path, shell: &str) -> std::process::Output {
    child(test, folder, shell).output().unwrap()
}

/// As [`run_child`], not yet started.
pub fn child(test: &str, folder: &Path, shell: &str) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", shell, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--ignored", "--test-threads=1"])
        .env(CHILD, folder);
    command
}

const CHILD: &str = "LANGEVIN_CHECKPOINT_TEST_FOLDER";

/// The folder a child process works in.
pub fn child_folder() -> PathBuf {
    std::env::var_os(CHILD).expect("run by its parent test").into()
}
