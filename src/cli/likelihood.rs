//! `langevin likelihood`: bits for a dimension of the data.

use std::time::Instant;

use clap::{Args, ValueEnum};
use langevin::backend::{Engine, WeightSet, human_bytes};
use langevin::config::MAX_BATCH;
use langevin::data::{DataOptions, Dataset};
use langevin::diffusion::denoiser::Limit;
use langevin::diffusion::likelihood::bound::{self, Variance};
use langevin::diffusion::likelihood::ode::{self, Probe};
use langevin::diffusion::likelihood::{Ask, Estimate, bits_per_dim, dequantise};
use langevin::diffusion::scheduler::VarianceType;
use langevin::likelihood::Asking;
use langevin::model::Conditioning;
use langevin::plan::Space;
use langevin::train::progress::Progress;
use langevin::{Error, Result};
use serde_json::json;

use super::model::Model;
use super::{Global, ModelOrData, Settings, Weights, output};

#[derive(Args, Debug)]
pub struct LikelihoodArgs {
    #[command(flatten)]
    model: ModelOrData,
    /// Data to score: digits, idx:PATH, cifar10:DIR, folder:DIR, npz:FILE or points:NAME
    #[arg(long, value_name = "SPEC")]
    data: String,
    /// ode: the probability-flow ODE's likelihood; vlb: the variational bound by terms
    #[arg(long, default_value = "ode")]
    method: Method,
    /// Images to score
    #[arg(long, default_value_t = 100, value_name = "N")]
    count: usize,
    /// Index of the first image
    #[arg(long, default_value_t = 0, value_name = "N")]
    first: usize,
    /// Rows of one evaluation; changes speed and memory, not the result
    #[arg(long, default_value_t = 32, value_name = "N")]
    batch: usize,
    /// ode: equal steps of Heun's method instead of error control; vlb: states of a process that is not discrete [default: 1000]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// ode: tolerance of a step [default: 1e-5]
    #[arg(long, value_name = "X")]
    rtol: Option<f64>,
    /// ode: probe vectors averaged for the trace; each costs as much as the first [default: 1]
    #[arg(long, value_name = "N")]
    probes: Option<usize>,
    /// ode: rademacher, gaussian, or exact: all unit vectors, for few dimensions [default: rademacher]
    #[arg(long, value_name = "KIND")]
    probe: Option<ProbeKind>,
    /// vlb: states drawn for each image, one from each of so many strata; all by default
    #[arg(long, value_name = "K")]
    terms: Option<usize>,
    /// Seed of dequantisation, probes and noise
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Which weights
    #[arg(long, default_value = "ema")]
    weights: Weights,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    Ode,
    Vlb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProbeKind {
    Rademacher,
    Gaussian,
    Exact,
}

/// The images to score.
struct Images {
    /// `[count, len]` in model range.
    x: Vec<f32>,
    classes: Vec<u32>,
    levels: usize,
}

impl LikelihoodArgs {
    /// Refuses flags of the other method and numbers out of range.
    fn validate(&self) -> Result<()> {
        let foreign = match self.method {
            Method::Ode => [("--terms", self.terms.is_some()), ("", false), ("", false)],
            Method::Vlb => [
                ("--rtol", self.rtol.is_some()),
                ("--probes", self.probes.is_some()),
                ("--probe", self.probe.is_some()),
            ],
        };
        if let Some((flag, _)) = foreign.iter().find(|(_, set)| *set) {
            return Err(Error::Usage(format!("{flag} belongs to the other --method")));
        }
        if self.steps.is_some() && self.rtol.is_some() {
            return Err(Error::Usage(
                "--steps takes equal steps and --rtol controls them: give one".into(),
            ));
        }
        if self.count == 0 || self.batch == 0 || self.steps == Some(0) {
            return Err(Error::Usage("--count, --batch and --steps must be at least 1".into()));
        }
        if self.batch > MAX_BATCH {
            return Err(Error::Usage(format!("--batch takes at most {MAX_BATCH}")));
        }
        Ok(())
    }

    fn ode(&self) -> Result<ode::Options> {
        let standard = ode::Options::default();
        let options = ode::Options {
            tolerance: self.rtol.unwrap_or(standard.tolerance),
            steps: self.steps,
            probe: match self.probe {
                None | Some(ProbeKind::Rademacher) => Probe::Rademacher,
                Some(ProbeKind::Gaussian) => Probe::Gaussian,
                Some(ProbeKind::Exact) => Probe::Exact,
            },
            probes: self.probes.unwrap_or(standard.probes),
            seed: self.seed,
        };
        options.validate()?;
        Ok(options)
    }

    fn bound(&self, model: &Model, levels: usize) -> Result<bound::Options> {
        let variance = match model.scheduler.variance_type.unwrap_or_default() {
            VarianceType::FixedSmall | VarianceType::FixedSmallLog => Variance::Small,
            VarianceType::FixedLarge | VarianceType::FixedLargeLog => Variance::Large,
            VarianceType::LearnedRange => Variance::LearnedRange,
            VarianceType::Learned => Variance::Learned,
        };
        let clip = match model.scheduler.limit() {
            Limit::Clip { range } => Some(range),
            Limit::None | Limit::Threshold { .. } => None,
        };
        Ok(bound::Options { variance, clip, terms: self.terms, levels, seed: self.seed })
    }

    /// Reads the data at the model's size.
    fn images(&self, model: &Model, [h, w, c]: [usize; 3]) -> Result<Images> {
        let mut data = Dataset::open(&self.data, &DataOptions::default())?;
        if data.shape()[1..] != [h, w, c] {
            eprintln!(
                "note: images of {:?} are brought to the model's {h}x{w}x{c}",
                &data.shape()[1..]
            );
            let options = DataOptions {
                size: (data.shape()[1..3] != [h, w]).then_some([h, w]),
                channels: (data.channels() != c).then_some(c),
                ..DataOptions::default()
            };
            data = Dataset::open(&self.data, &options)?;
        }
        if self.first.checked_add(self.count).is_none_or(|end| end > data.len()) {
            return Err(Error::Usage(format!(
                "--first {} --count {}: data `{}` has {} images",
                self.first,
                self.count,
                self.data,
                data.len()
            )));
        }
        let indices: Vec<usize> = (self.first..self.first + self.count).collect();
        let mut x = vec![0f32; self.count * data.image_len()];
        data.fill_batch(&indices, &[], &mut x);
        let classes = match (model.network.class_input(), data.labels()) {
            (Conditioning::Absent, _) => Vec::new(),
            (_, Some(labels)) => indices.iter().map(|&i| labels[i]).collect(),
            (_, None) => {
                return Err(Error::Data {
                    spec: self.data.clone(),
                    problem: "has no classes, and the network needs one for each image".into(),
                });
            }
        };
        Ok(Images { x, classes, levels: data.levels() })
    }
}

pub fn run(args: LikelihoodArgs, global: &Global) -> Result<()> {
    args.validate()?;
    let model = args.model.open(&args.settings.set)?;
    let image = model.image_shape()?;
    let images = args.images(&model, image)?;
    let len: usize = image.iter().product();
    let asking = Asking {
        network: &model.network,
        image,
        batch: args.batch.min(match args.method {
            Method::Ode => args.count,
            Method::Vlb => args.batch,
        }),
        products: args.method == Method::Ode,
    };
    let (mut facts, seconds) = global.on_device(|backend| {
        let engine = Engine::new(backend, 0, false)?;
        let prepared = asking.prepare(&engine)?;
        let need = prepared.requirement(model.parameters.arena_len());
        engine.check(&need, "lower --batch")?;
        let mut engine = Engine::new(engine.into_backend(), model.parameters.arena_len(), false)?;
        let (arena, report) = model.weights(args.weights)?;
        if !global.json {
            eprintln!("{report}");
            eprintln!("memory {}", human_bytes(need.total() as u64));
        }
        engine.set_arena(Space::Parameters, &arena)?;
        drop(arena);
        let mut ask = prepared.load(&mut engine, WeightSet::Raw)?;
        let began = Instant::now();
        let bar = Progress::new("likelihood", args.count as u64, 0);
        let mut watch = |done: usize, _: usize| {
            bar.update(done as u64, "");
            Ok(())
        };
        let facts = match args.method {
            Method::Ode => by_ode(&args, &model, &images, &mut ask, &mut watch)?,
            Method::Vlb => by_bound(&args, &model, &images, &mut ask, &mut watch)?,
        };
        bar.finish();
        Ok((facts, began.elapsed().as_secs_f64()))
    })?;
    if global.json {
        facts.json["images"] = args.count.into();
        facts.json["dimensions"] = len.into();
        facts.json["levels"] = images.levels.into();
        facts.json["seconds"] = seconds.into();
        return output::json(&facts.json);
    }
    let levels = match images.levels {
        0 => "continuous".to_string(),
        levels => format!("{levels} levels"),
    };
    output::line(&format!(
        "{}\n{} images of {len} dimensions ({levels}), {} evaluations of the network, {seconds:.1} s",
        facts.lines.join("\n"),
        args.count,
        output::grouped(facts.evaluations),
    ))
}

/// What there is to print.
struct Facts {
    json: serde_json::Value,
    lines: Vec<String>,
    evaluations: u64,
}

fn by_ode(
    args: &LikelihoodArgs,
    model: &Model,
    images: &Images,
    ask: &mut dyn Ask,
    watch: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Facts> {
    let len = ask.len();
    let mut x: Vec<f64> = images.x.iter().map(|&v| f64::from(v)).collect();
    if images.levels > 0 {
        for (i, x) in x.chunks_exact_mut(len).enumerate() {
            dequantise(images.levels, args.seed, (args.first + i) as u64, 0, x);
        }
    }
    let scored = ode::score(
        ask,
        &model.denoiser,
        &*model.sampled,
        ode::Images { x: &x, classes: &images.classes, first: args.first as u64 },
        None,
        &args.ode()?,
        watch,
    )?;
    let bits: Vec<f64> =
        scored.iter().map(|s| bits_per_dim(s.log_density, len, images.levels)).collect();
    let nats: Vec<f64> = scored.iter().map(|s| s.log_density / len as f64).collect();
    let (bits, nats) = (Estimate::of(&bits), Estimate::of(&nats));
    let evaluations = scored.iter().map(|s| s.evaluations).sum();
    let steps = scored.iter().map(|s| s.steps as f64).sum::<f64>() / scored.len() as f64;
    Ok(Facts {
        json: json!({
            "method": "ode",
            "process": model.sampled.name(),
            "bits_per_dim": bits,
            "log_density_per_dim": nats,
            "steps": steps,
            "evaluations": evaluations,
        }),
        lines: vec![
            format!("ode: {bits} bits/dim"),
            format!("log density {nats} nats/dim, {steps:.1} steps an image"),
        ],
        evaluations,
    })
}

fn by_bound(
    args: &LikelihoodArgs,
    model: &Model,
    images: &Images,
    ask: &mut dyn Ask,
    watch: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Facts> {
    let len = ask.len();
    let process = &*model.sampled;
    if process.steps().is_some() && args.steps.is_some() {
        return Err(Error::Usage(format!(
            "--steps: `{}` is discrete and has its own steps; evaluate fewer with --terms",
            process.name()
        )));
    }
    let pairs = bound::chain(process, args.steps.unwrap_or(1000));
    let terms = bound::score(
        ask,
        &model.denoiser,
        process,
        &pairs,
        bound::Images { x: &images.x, classes: &images.classes, first: args.first as u64 },
        &args.bound(model, images.levels)?,
        watch,
    )?;
    let bits = |of: &dyn Fn(&bound::Terms) -> f64| {
        let nats_in_bit = len as f64 * std::f64::consts::LN_2;
        Estimate::of(&terms.iter().map(|t| of(t) / nats_in_bit).collect::<Vec<_>>())
    };
    let total = bits(&bound::Terms::total);
    let (prior, steps, decoder) = (bits(&|t| t.prior), bits(&|t| t.steps), bits(&|t| t.decoder));
    let states = pairs.len() - 1;
    let each = args.terms.map_or(states, |terms| terms.min(states - 1) + 1);
    let evaluations = (each * terms.len()) as u64;
    Ok(Facts {
        json: json!({
            "method": "vlb",
            "process": process.name(),
            "states": states,
            "bits_per_dim": total,
            "prior": prior,
            "steps": steps,
            "decoder": decoder,
            "evaluations": evaluations,
        }),
        lines: vec![
            format!("vlb: {total} bits/dim over {states} states"),
            format!("L_T {prior}, sum of L_t {steps}, L_0 {decoder}"),
        ],
        evaluations,
    })
}
