//! `langevin predict`: the bare network on a tensor file.

use std::path::PathBuf;

use clap::Args;
use langevin::backend::{Engine, WeightSet, human_bytes};
use langevin::checkpoint::tensors::{self, Tensor, nchw_to_nhwc, nhwc_to_nchw};
use langevin::model::Conditioning;
use langevin::plan::Space;
use langevin::predict::{Conditions, predict, predict_with_gradients, requirement};
use langevin::{Error, Result};

use super::{Global, ModelArg, Settings, Weights, model, output};

#[derive(Args, Debug)]
pub struct PredictArgs {
    #[command(flatten)]
    model: ModelArg,
    /// Safetensors with x [n,c,h,w], t [n] and, where the network has classes, class [n]
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Safetensors to write: prediction [n,c,h,w]
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Safetensors to write: loss and its gradient by every trainable weight; reads target [n,c,h,w]
    #[arg(long, value_name = "FILE")]
    gradients: Option<PathBuf>,
    /// Which weights
    #[arg(long, default_value = "ema")]
    weights: Weights,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: PredictArgs, global: &Global) -> Result<()> {
    let model = model::open(&args.model.model, &args.settings.set)?;
    let (arena, report) = model.weights(args.weights)?;
    if !global.json {
        eprintln!("{report}");
    }
    let input = tensors::read(&args.input)?;
    let axes = ["n", "c", "h", "w"];
    let ([n, c, h, w], x) = input.floats("x", axes)?;
    let x = nchw_to_nhwc(x, [n, c, h, w])?;
    let mut conditions = Conditions { t: input.times("t")?, ..Conditions::default() };
    match model.network.class_input() {
        Conditioning::Absent => {}
        Conditioning::Vector(_) => {
            conditions.class_vector = Some(input.floats("class", ["n", "dim"])?.1.to_vec());
        }
        Conditioning::Value | Conditioning::Row(_) => {
            conditions.class = Some(input.labels("class")?.to_vec());
        }
    }
    let shape = [n, h, w, c];
    let out_shape = [n, model.network.out_channels(), h, w];
    if args.gradients.as_ref() == Some(&args.output) {
        return Err(Error::Usage("--output and --gradients name the same file".into()));
    }
    // What the network finds wrong with the tensors is wrong with the file.
    let of_file = |error: Error| match error {
        Error::Usage(problem) => Error::content(&args.input, problem),
        other => other,
    };
    let (prediction, loss) = global.on_device(|backend| {
        // The need is known, and checked, before anything large is allocated.
        let engine = Engine::new(backend, 0, false)?;
        let gradients = args.gradients.is_some();
        let need = requirement(&engine, &model.network, shape, gradients).map_err(of_file)?;
        engine.check(&need, "put fewer images in a file")?;
        if !global.json {
            eprintln!("{n} images; memory {}", human_bytes(need.total() as u64));
        }
        let len = model.parameters.arena_len();
        let mut engine = Engine::new(engine.into_backend(), len, gradients)?;
        engine.set_arena(Space::Parameters, &arena)?;
        match &args.gradients {
            None => {
                let network = &model.network;
                let prediction =
                    predict(&mut engine, network, WeightSet::Raw, shape, &x, &conditions);
                Ok((prediction.map_err(of_file)?, None))
            }
            Some(path) => {
                let (target_shape, target) = input.floats("target", axes)?;
                if target_shape != out_shape {
                    return Err(Error::content(
                        &args.input,
                        format!(
                            "tensor `target` has shape {target_shape:?}, expected {out_shape:?}"
                        ),
                    ));
                }
                let target = nchw_to_nhwc(target, out_shape)?;
                let network = &model.network;
                let (prediction, gradients) =
                    predict_with_gradients(&mut engine, network, shape, &x, &conditions, &target)
                        .map_err(of_file)?;
                let mut named =
                    vec![("loss".to_string(), Tensor::f32(&[], vec![gradients.loss as f32])?)];
                for p in model.parameters.entries.iter().filter(|p| p.trainable) {
                    let mut disk = vec![0f32; p.len()];
                    p.to_disk(&gradients.arena[p.offset..p.offset + p.len()], &mut disk);
                    named.push((p.name.clone(), Tensor::f32(&p.disk_shape, disk)?));
                }
                let list: Vec<_> = named.iter().map(|(name, t)| (name.as_str(), t)).collect();
                tensors::write(path, &list)?;
                Ok((prediction, Some(gradients.loss)))
            }
        }
    })?;
    let prediction = Tensor::f32(&out_shape, nhwc_to_nchw(&prediction, out_shape)?)?;
    tensors::write(&args.output, &[("prediction", &prediction)])?;
    match (global.json, loss) {
        (true, loss) => output::json(&serde_json::json!({
            "images": n, "output": args.output, "gradients": args.gradients, "loss": loss,
        })),
        (false, Some(loss)) => output::line(&format!("loss {loss:.6}")),
        (false, None) => Ok(()),
    }
}
