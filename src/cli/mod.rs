//! The command line: parse, validate, dispatch.

mod edit;
mod evaluate;
mod info;
mod likelihood;
mod model;
mod output;
mod plot;
mod predict;

mod sample;
mod schedule;
mod train;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use langevin::backend::{Backend, Devices, Precision};
use langevin::{Error, Result};

/// Trains, samples and scores diffusion models: one binary, no Python.
#[derive(Parser, Debug)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        langevin train --data digits --out runs/digits\n  \
        langevin sample runs/digits --out grid.png --count 64\n  \
        langevin sample path/to/ddpm-cifar10-32 --out grid.png --sampler ddim --steps 50\n  \
        langevin info runs/digits\n  \
        langevin schedule --steps 500 --json"
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Where to compute. auto takes CUDA where a driver and a device answer and the device has
    /// memory and kernels for the run, else the CPU, and says which and why; cuda takes no other
    #[arg(long, global = true, default_value = "auto", value_name = "auto|cpu|cuda|cuda:N")]
    pub device: String,
    /// Of the network's arithmetic; tf32 and bf16 on CUDA alone. Weights and sums are f32
    #[arg(long, global = true, default_value = "f32", value_parser = precision, value_name = "f32|tf32|bf16")]
    pub precision: Precision,
    /// CPU threads; 0 takes one for each core. Results do not depend on it
    #[arg(long, global = true, default_value_t = 0, value_parser = threads, value_name = "N")]
    pub threads: usize,
    /// Print facts as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

fn precision(name: &str) -> std::result::Result<Precision, String> {
    let all = [Precision::F32, Precision::Tf32, Precision::Bf16];
    let found = all.into_iter().find(|p| p.to_string() == name);
    found.ok_or_else(|| "it is one of f32, tf32, bf16".into())
}

/// More threads than any machine has cores only wait for one another.
fn threads(count: &str) -> std::result::Result<usize, String> {
    let most = 1024;
    let count: usize = count.parse().map_err(|e| format!("{e}"))?;
    if count <= most { Ok(count) } else { Err(format!("at most {most}")) }
}

/// Which of a checkpoint's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// The exponential moving average
    Ema,
    /// The weights as the optimizer left them
    Raw,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Train a network; the run directory holds checkpoints, metrics and pictures
    #[command(after_help = "Examples:\n  \
        langevin train --data digits --out runs/digits\n  \
        langevin train --data folder:photos --out runs/photos --set data.size='[32, 32]'\n  \
        langevin train --data cifar10:cifar-10-batches-bin --out runs/cifar --config cifar10\n  \
        langevin train --data digits --out runs/digits --resume --steps 8000\n\n\
        SPEC is digits, idx:PATH, cifar10:DIR, folder:DIR, npz:FILE or points:NAME with NAME one of\n\
        swissroll, moons, gaussians8, checkerboard, spiral.")]
    Train(train::TrainArgs),
    /// Draw images from a model
    #[command(after_help = "Examples:\n  \
        langevin sample runs/digits --out grid.png --count 64\n  \
        langevin sample runs/digits --out pictures/ --count 1000 --sampler ddim --steps 50\n  \
        langevin sample runs/digits --out one.png --first 17 --count 1 --seed 3\n  \
        langevin sample runs/moons --out field.png --plot field\n  \
        langevin sample --model-free digits --out grid.png --sampler ddim\n\n\
        MODEL is a run directory, a checkpoint directory, or a diffusers directory.")]
    Sample(sample::SampleArgs),
    /// Complete, change, invert or recover images
    #[command(after_help = "Examples:\n  \
        langevin edit runs/digits --method repaint --image one.png --mask known.png --out filled.png --count 16\n  \
        langevin edit runs/digits --method sdedit --image one.png --strength 0.4 --out variants/ --count 8\n  \
        langevin edit runs/digits --method invert --image one.png --out again.png --tensors noise.safetensors\n  \
        langevin edit runs/digits --method interpolate --image one.png --image two.png --out between.png\n  \
        langevin edit runs/digits --method dps --image one.png --operator downsample:2 --noise-std 0.05 --out sharp.png\n\n\
        The path is DDIM's: --steps, and --set sampler.KEY=VALUE as for `sample --sampler ddim`.")]
    Edit(edit::EditArgs),
    /// Score data: bits for a dimension, by the ODE or by the variational bound
    #[command(after_help = "Examples:\n  \
        langevin likelihood runs/digits --data digits --count 20\n  \
        langevin likelihood runs/digits --data digits --method vlb --terms 50\n  \
        langevin likelihood runs/moons --data points:moons --probe exact\n\n\
        The ODE scores uniformly dequantised data, the bound the levels themselves; both are in\n\
        bits for one of the image's values. Points are continuous: their density is scored.")]
    Likelihood(likelihood::LikelihoodArgs),
    /// Run the bare network on a tensor file
    #[command(
        after_help = "Reads x [n,c,h,w], t [n] and, where the network has classes, class [n];\n\
        writes prediction [n,c,h,w]. With --gradients reads target [n,c,h,w] and writes the\n\
        mean squared error `loss` and its gradient by every trainable weight."
    )]
    Predict(predict::PredictArgs),
    /// Print a noise schedule
    #[command(
        after_help = "Example:\n  langevin schedule --steps 500 --set scheduler.beta_schedule=linear --json"
    )]
    Schedule(schedule::ScheduleArgs),
    /// Score samples against data: Frechet distance, MMD, precision, recall, density, coverage
    #[command(after_help = "Examples:\n  \
        langevin evaluate runs/digits --data digits --sampler ddim --steps 50 --pairs closest.png\n  \
        langevin evaluate pictures/ --data folder:photos --json\n  \
        langevin evaluate points:moons:1:2000 --data points:moons\n  \
        langevin evaluate --features features.npz")]
    Evaluate(evaluate::EvaluateArgs),
    /// Say what a device or a model is and needs
    Info(info::InfoArgs),
}

/// `--set key=value`, as often as needed.
#[derive(Args, Debug, Clone)]
pub struct Settings {
    /// Override one configuration key, e.g. --set train.batch=16 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Where a model lies.
#[derive(Args, Debug, Clone)]
pub struct ModelArg {
    /// Run directory, checkpoint directory, or diffusers directory
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
}

/// A model, or a data set in its place.
#[derive(Args, Debug, Clone)]
pub struct ModelOrData {
    /// Run directory, checkpoint directory, or diffusers directory
    #[arg(value_name = "MODEL", required_unless_present = "model_free")]
    pub model: Option<PathBuf>,
    /// In the model's place the exact denoiser of a data set: digits, npz:FILE, points:NAME, ...
    #[arg(long, value_name = "DATA", conflicts_with = "model")]
    pub model_free: Option<String>,
}

impl ModelOrData {
    /// Opens it; see [`model::open`].
    pub fn open(&self, set: &[String]) -> Result<model::Model> {
        match (&self.model, &self.model_free) {
            (Some(path), None) => model::open(path, set),
            (None, Some(data)) => model::open_data(data, set),
            _ => Err(Error::Usage("give a MODEL or --model-free DATA".into())),
        }
    }
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Train(args) => train::run(args, &self.global),
            Command::Sample(args) => sample::run(args, &self.global),
            Command::Edit(args) => edit::run(args, &self.global),
            Command::Likelihood(args) => likelihood::run(args, &self.global),
            Command::Predict(args) => predict::run(args, &self.global),
            Command::Schedule(args) => schedule::run(args, &self.global),
            Command::Evaluate(args) => evaluate::run(args, &self.global),
            Command::Info(args) => info::run(args, &self.global),
        }
    }
}

impl Global {
    /// The devices that `--device` names.
    pub fn devices(&self) -> Result<Devices> {
        match self.device.as_str() {
            "auto" => Devices::best(self.precision, self.threads),
            "cpu" => Devices::cpu(self.precision, self.threads),
            "cuda" => Devices::cuda(0, self.precision),
            name => match name.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(ordinal) => Devices::cuda(ordinal, self.precision),
                None => Err(Error::Usage(format!(
                    "--device takes auto, cpu, cuda or cuda:N, not `{name}`"
                ))),
            },
        }
    }

    /// Does something on the device that `--device` names, or on the best one that can; says
    /// which where it was not named.
    pub fn on_device<T>(&self, work: impl FnMut(Box<dyn Backend>) -> Result<T>) -> Result<T> {
        let mut say = |text: &str| {
            if !self.json {
                eprintln!("{text}");
            }
        };
        self.devices()?.take(&mut say, work)
    }
}
