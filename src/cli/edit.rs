//! `langevin edit`: images completed, changed, inverted or recovered by a model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use langevin::backend::{Engine, WeightSet};
use langevin::checkpoint::atomic;
use langevin::checkpoint::tensors::{self, Tensor, nchw_to_nhwc, nhwc_to_nchw};
use langevin::config::MAX_BATCH;
use langevin::diffusion::edit::dps::{self, Dps, Operator};
use langevin::diffusion::edit::repaint::{self, RePaint};
use langevin::diffusion::edit::sdedit::{self, SdEdit};
use langevin::diffusion::edit::{invert, slerp};
use langevin::diffusion::sampler::run::{KNOWN, MASK, Request, Samples};
use langevin::diffusion::sampler::{Kind, Options, Program, Setup};
use langevin::model::Conditioning;
use langevin::plan::Space;
use langevin::random::{Purpose, check_images, fill_normal, image_keys};
use langevin::sample::Drawing;
use langevin::train::progress::Progress;
use langevin::{Error, Result, picture};

use super::model::{self, Model};
use super::{Global, ModelArg, Settings, Weights, output};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Fill in what --mask leaves black (RePaint)
    Repaint,
    /// Noise the image and draw it again from there (SDEdit)
    Sdedit,
    /// Find the noise that DDIM draws the image from, and draw it again
    Invert,
    /// From one image to another, through the noise of both
    Interpolate,
    /// Recover the image from a measurement of it (DPS)
    Dps,
}

#[derive(Args, Debug)]
pub struct EditArgs {
    #[command(flatten)]
    model: ModelArg,
    /// What to do
    #[arg(long, value_name = "METHOD")]
    method: Method,
    /// A picture, or safetensors with samples [n,c,h,w] in model range (repeatable)
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// A picture, white where a pixel is known; or safetensors with mask [1|n,1|c,h,w]
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// A .png file for one grid, or a folder for one picture an image
    #[arg(long, value_name = "grid.png|DIR")]
    out: PathBuf,
    /// Images to draw: they take turns with the given ones; by default one for each
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Index of the first image: image i of a seed is always the same
    #[arg(long, default_value_t = 0, value_name = "N")]
    first: u64,
    /// Images of one batch; changes speed and memory, not the images
    #[arg(long, default_value_t = 16, value_name = "N")]
    batch: usize,
    /// Steps along DDIM's path; by default 50
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Share of the ancestral noise in a step, 0 to 1 (repaint, sdedit, dps)
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    eta: f64,
    /// Seed of the noise
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Which weights
    #[arg(long, default_value = "ema")]
    weights: Weights,
    /// Class of all images, where the network has classes; by default the last row, none
    #[arg(long, value_name = "K")]
    class: Option<u32>,
    /// Classifier-free guidance towards --class: uncond + W (cond - uncond); 1 is off
    #[arg(long, default_value_t = 1.0, value_name = "W", allow_negative_numbers = true)]
    guidance: f64,
    /// Safetensors to write: samples [n,c,h,w]; with invert also x_T, for sample --noise
    #[arg(long, value_name = "FILE")]
    tensors: Option<PathBuf>,
    /// repaint: steps of a jump back to more noise
    #[arg(long, default_value_t = 10, value_name = "N")]
    jump_length: usize,
    /// repaint: times a stretch is drawn; 1 for no jumps
    #[arg(long, default_value_t = 10, value_name = "N")]
    resamples: usize,
    /// sdedit: part of the steps that are made: a little keeps the image, 1 forgets it
    #[arg(long, default_value_t = 0.5, value_name = "X", allow_negative_numbers = true)]
    strength: f64,
    /// invert, interpolate: evaluations for each step; more return the image better
    #[arg(long, default_value_t = 1, value_name = "N")]
    iterations: usize,
    /// interpolate: images from one end to the other
    #[arg(long, default_value_t = 9, value_name = "N")]
    frames: usize,
    /// dps: the measurement: mask, downsample:FACTOR or blur:SIGMA
    #[arg(long, default_value = "mask", value_name = "OPERATOR")]
    operator: String,
    /// dps: length of a step against the residual's gradient
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    scale: f64,
    /// dps: std of the noise added to the measurement that is made from --image
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    noise_std: f64,
    /// dps: safetensors with the measurement y [n,c,h,w], in place of --image
    #[arg(long, value_name = "FILE")]
    measured: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Images in memory order with their shape `[n, h, w, c]`.
struct Images {
    values: Vec<f32>,
    shape: [usize; 4],
}

impl Images {
    /// Reads tensor `name` of a safetensors file, or a picture.
    fn read(path: &Path, name: &str, channels: usize) -> Result<Images> {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")) {
            let file = tensors::read(path)?;
            let ([n, c, h, w], values) = file.floats(name, ["n", "c", "h", "w"])?;
            return Ok(Images { values: nchw_to_nhwc(values, [n, c, h, w])?, shape: [n, h, w, c] });
        }
        let image = image::open(path).map_err(|e| Error::content(path, e.to_string()))?;
        let (w, h) = (image.width() as usize, image.height() as usize);
        let bytes = match channels {
            1 => image.into_luma8().into_raw(),
            3 => image.into_rgb8().into_raw(),
            _ => {
                let problem = format!("a picture has 1 or 3 channels and the model {channels}");
                return Err(Error::content(path, problem));
            }
        };
        let values = bytes.iter().map(|&b| f32::from(b) / 127.5 - 1.0).collect();
        Ok(Images { values, shape: [1, h, w, channels] })
    }

    /// Refuses images of another size, and puts all files' images together.
    fn read_all(paths: &[PathBuf], [h, w, c]: [usize; 3]) -> Result<Images> {
        let mut all = Images { values: Vec::new(), shape: [0, h, w, c] };
        for path in paths {
            let images = Images::read(path, "samples", c)?;
            images.expect(path, [h, w, c])?;
            all.values.extend(images.values);
            all.shape[0] += images.shape[0];
        }
        Ok(all)
    }

    fn expect(&self, path: &Path, shape: [usize; 3]) -> Result<()> {
        if self.shape[1..] == shape && self.shape[0] > 0 {
            return Ok(());
        }
        let [h, w, c] = shape;
        let [n, fh, fw, fc] = self.shape;
        Err(Error::content(
            path,
            format!(
                "holds {n} images of {fh} x {fw} with {fc} channels; {h} x {w} with {c} is needed"
            ),
        ))
    }

    /// The `count` images from `first` on, in turns.
    fn turns(&self, first: u64, count: usize) -> Vec<f32> {
        let len = self.values.len() / self.shape[0];
        (0..count as u64)
            .map(|i| ((first + i) % self.shape[0] as u64) as usize)
            .flat_map(|i| &self.values[i * len..(i + 1) * len])
            .copied()
            .collect()
    }
}

/// The mask of `count` images, 1 where a pixel is known; one channel is for all.
fn read_mask(path: &Path, [h, w, c]: [usize; 3], first: u64, count: usize) -> Result<Vec<f32>> {
    let mut mask = Images::read(path, "mask", 1)?;
    let is_picture = !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"));
    if mask.shape[3] == 1 && c > 1 {
        mask.values = mask.values.iter().flat_map(|&m| vec![m; c]).collect();
        mask.shape[3] = c;
    }
    mask.expect(path, [h, w, c])?;
    if is_picture {
        mask.values.iter_mut().for_each(|m| *m = if *m > 0.0 { 1.0 } else { 0.0 });
    }
    if mask.values.iter().any(|m| !(0.0..=1.0).contains(m)) {
        return Err(Error::content(path, "tensor `mask` must lie between 0 and 1"));
    }
    Ok(mask.turns(first, count))
}

/// An engine with the weights, and what every run of this command shares.
struct Editor<'a> {
    args: &'a EditArgs,
    drawing: Drawing<'a>,
    engine: Engine,
    arena_len: usize,
    /// Of every image, and the one that stands for none.
    classes: Vec<u32>,
    null_class: u32,
    evaluations: u64,
}

impl Editor<'_> {
    /// Runs a program, with an operator the plan of DPS.
    fn run(
        &mut self,
        program: Program,
        operator: Option<&Operator>,
        request: &Request,
    ) -> Result<Samples> {
        let count = request.count;
        self.drawing.batch = self.args.batch.min(count);
        let stages = (program.stages.len() * count.div_ceil(self.drawing.batch)) as u64;
        let prepared = self.drawing.prepare_program(&self.engine, program, operator)?;
        self.engine.check(&prepared.requirement(self.arena_len), "lower --batch")?;
        let ready = prepared.load(&mut self.engine, WeightSet::Raw)?;
        let bar = Progress::new("edit", stages, 0);
        let classes = self.classes.repeat(count);
        let request = Request {
            seed: self.args.seed,
            first: self.args.first,
            classes: &classes,
            null_class: self.null_class,
            ..*request
        };
        let samples = ready.draw(&mut self.engine, &request, &mut |done, _| {
            bar.update(done as u64, "");
            Ok(())
        });
        bar.finish();
        ready.unload(&mut self.engine);
        let samples = samples?;
        self.evaluations += samples.evaluations;
        Ok(samples)
    }

    fn repaint(&mut self, images: &Images, count: usize) -> Result<Vec<f32>> {
        let args = self.args;
        let Some(mask) = &args.mask else {
            return Err(Error::Usage("--method repaint needs --mask".into()));
        };
        let mask = read_mask(mask, self.drawing.image, args.first, count)?;
        let known = images.turns(args.first, count);
        let options =
            RePaint { jump_length: args.jump_length, resamples: args.resamples, eta: args.eta };
        let program = repaint::program(&self.drawing.setup, &options)?;
        let images = [(KNOWN, known.as_slice()), (MASK, mask.as_slice())];
        let request = Request { count, images: &images, ..Request::default() };
        Ok(self.run(program, None, &request)?.images)
    }

    fn sdedit(&mut self, images: &Images, count: usize) -> Result<Vec<f32>> {
        let options = SdEdit { strength: self.args.strength, eta: self.args.eta };
        let program = sdedit::program(&self.drawing.setup, &options)?;
        let start = images.turns(self.args.first, count);
        let request = Request { count, start: Some(&start), ..Request::default() };
        Ok(self.run(program, None, &request)?.images)
    }

    fn dps(&mut self, images: &Images, count: usize) -> Result<Vec<f32>> {
        let (args, [h, w, c]) = (self.args, self.drawing.image);
        let operator = Operator::from_name(&args.operator, h, w)?;
        let mask = match (&args.mask, operator.masked) {
            (Some(path), true) => Some(read_mask(path, [h, w, c], args.first, count)?),
            (None, true) => return Err(Error::Usage("--operator mask needs --mask".into())),
            (Some(_), false) => {
                return Err(Error::Usage("--mask: only --operator mask takes one".into()));
            }
            (None, false) => None,
        };
        let [ho, wo] = operator.shape();
        let measured = match &args.measured {
            Some(path) => {
                let measured = Images::read(path, "y", c)?;
                measured.expect(path, [ho, wo, c])?;
                measured.turns(args.first, count)
            }
            None => {
                let mut y = operator.apply(&images.turns(args.first, count), c);
                let len = ho * wo * c;
                let mut noise = vec![0f32; len];
                for (i, y) in (args.first..).zip(y.chunks_exact_mut(len)) {
                    fill_normal(image_keys(args.seed, i), Purpose::Known, 0, 0, &mut noise);
                    for (y, z) in y.iter_mut().zip(&noise) {
                        *y += args.noise_std as f32 * z;
                    }
                }
                y
            }
        };
        let options = Dps { scale: args.scale, eta: args.eta };
        let program = dps::program(&self.drawing.setup, &options)?;
        let mut given = vec![(dps::name::MEASURED, measured.as_slice())];
        given.extend(mask.as_ref().map(|mask| (dps::name::MASK, mask.as_slice())));
        let constants = operator.constants();
        let request =
            Request { count, images: &given, constants: &constants, ..Request::default() };
        Ok(self.run(program, Some(&operator), &request)?.images)
    }

    /// The noise of images, of the std that DDIM's path starts from.
    fn invert(&mut self, images: &[f32], count: usize) -> Result<Vec<f32>> {
        let program = invert::program(&self.drawing.setup, self.args.iterations)?;
        let request = Request { count, start: Some(images), ..Request::default() };
        Ok(self.run(program, None, &request)?.images)
    }

    /// Images from their noise.
    fn back(&mut self, noise: &[f32], count: usize) -> Result<Vec<f32>> {
        let program = invert::back(&self.drawing.setup)?;
        let request = Request { count, start: Some(noise), ..Request::default() };
        Ok(self.run(program, None, &request)?.images)
    }
}

fn options(args: &EditArgs) -> Result<Options> {
    let mut options = Options { steps: args.steps, ..Options::default() };
    for assignment in &args.settings.set {
        let Some(setting) = assignment.trim().strip_prefix("sampler.") else { continue };
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        options.set(Kind::Ddim, key.trim(), value.trim())?;
    }
    Ok(options)
}

/// Refuses guidance that has nothing to guide by.
fn check_guidance(args: &EditArgs, model: &Model) -> Result<()> {
    if !args.guidance.is_finite() {
        return Err(Error::Usage("--guidance must be a finite number".into()));
    }
    if args.guidance == 1.0 {
        return Ok(());
    }
    match model.network.class_input() {
        Conditioning::Absent => {
            Err(Error::Usage("--guidance: the network has no classes to guide by".into()))
        }
        _ if args.class.is_none() => {
            Err(Error::Usage("--guidance leads towards a class: name it with --class".into()))
        }
        _ => Ok(()),
    }
}

/// The class of every image, where the network takes one.
fn class(args: &EditArgs, model: &Model) -> Result<Vec<u32>> {
    match (model.network.class_input(), args.class) {
        (Conditioning::Row(rows), Some(class)) if class as usize >= rows => {
            Err(Error::Usage(format!("--class {class}: the network has classes 0 to {}", rows - 1)))
        }
        (Conditioning::Row(rows), class) => Ok(vec![class.unwrap_or(rows as u32 - 1)]),
        (Conditioning::Value, class) => Ok(vec![class.unwrap_or(0)]),
        (_, Some(_)) => Err(Error::Usage("--class: the network has no classes".into())),
        (_, None) => Ok(Vec::new()),
    }
}

pub fn run(args: EditArgs, global: &Global) -> Result<()> {
    if args.batch == 0 || args.batch > MAX_BATCH {
        return Err(Error::Usage(format!("--batch takes 1 to {MAX_BATCH}")));
    }
    if args.count == Some(0) || args.frames < 2 {
        return Err(Error::Usage("--count takes 1 or more, --frames 2 or more".into()));
    }
    if !(args.noise_std >= 0.0 && args.noise_std.is_finite()) {
        return Err(Error::Usage(format!("--noise-std {} must be at least 0", args.noise_std)));
    }
    let alone = args.method == Method::Dps && args.measured.is_some();
    if args.image.is_empty() != alone {
        return Err(Error::Usage(match alone {
            true => "--measured takes the place of --image".into(),
            false => "--image names what to edit".into(),
        }));
    }
    let model = model::open(&args.model.model, &args.settings.set)?;
    let image = model.image_shape()?;
    let [h, w, c] = image;
    let images = Images::read_all(&args.image, image)?;
    let given = match &args.measured {
        Some(path) if alone => Images::read(path, "y", c)?.shape[0],
        _ => images.shape[0],
    };
    let count = args.count.unwrap_or(given);
    check_images(args.first, count as u64)?;
    let classes = class(&args, &model)?;
    check_guidance(&args, &model)?;
    let null_class = match model.network.class_input() {
        Conditioning::Row(rows) => rows as u32 - 1,
        _ => 0,
    };
    let setup = Setup::new(
        model.denoiser.clone(),
        model.sampled.clone(),
        &model.scheduler,
        options(&args)?,
    )?;
    let drawing = Drawing {
        network: &model.network,
        kind: Kind::Ddim,
        setup,
        image,
        batch: args.batch,
        guidance: args.guidance,
        given_noise: false,
    };
    let start_std = invert::start_std(&drawing.setup)?;
    let arena_len = model.parameters.arena_len();
    let began = Instant::now();
    let (edited, noise, evaluations) = global.on_device(|backend| {
        let mut engine = Engine::new(backend, arena_len, false)?;
        let (arena, report) = model.weights(args.weights)?;
        if !global.json {
            eprintln!("{report}");
        }
        engine.set_arena(Space::Parameters, &arena)?;
        drop(arena);
        let (args, drawing, classes) = (&args, drawing.clone(), classes.clone());
        let mut editor =
            Editor { args, drawing, engine, arena_len, classes, null_class, evaluations: 0 };
        let mut noise = None;
        let edited = match args.method {
            Method::Repaint => editor.repaint(&images, count)?,
            Method::Sdedit => editor.sdedit(&images, count)?,
            Method::Dps => editor.dps(&images, count)?,
            Method::Invert => {
                let originals = images.turns(args.first, count);
                let found = editor.invert(&originals, count)?;
                let again = editor.back(&found, count)?;
                noise = Some(found.iter().map(|x| x / start_std as f32).collect());
                again
            }
            Method::Interpolate => {
                let ends = images.turns(0, 2);
                if images.shape[0] != 2 {
                    return Err(Error::Usage(format!(
                        "--method interpolate takes 2 images, not {}",
                        images.shape[0]
                    )));
                }
                let found = editor.invert(&ends, 2)?;
                let (a, b) = found.split_at(h * w * c);
                let at = |i: usize| i as f64 / (args.frames - 1) as f64;
                let between: Vec<f32> = (0..args.frames).flat_map(|i| slerp(a, b, at(i))).collect();
                editor.back(&between, args.frames)?
            }
        };
        Ok((edited, noise, editor.evaluations))
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let count = edited.len() / (h * w * c);
    let written = write(&args, &edited, noise, [count, h, w, c])?;
    if global.json {
        return output::json(&serde_json::json!({
            "images": count,
            "method": args.method.to_possible_value().map(|v| v.get_name().to_string()),
            "evaluations": evaluations,
            "seconds": seconds,
            "written": written,
        }));
    }
    let names: Vec<_> = written.iter().map(|p| format!("`{}`", p.display())).collect();
    output::line(&format!(
        "{count} images, {} evaluations of the network, {seconds:.1} s: {}",
        output::grouped(evaluations),
        names.join(", ")
    ))
}

/// Writes pictures and tensors; says what was written.
fn write(
    args: &EditArgs,
    images: &[f32],
    noise: Option<Vec<f32>>,
    shape: [usize; 4],
) -> Result<Vec<PathBuf>> {
    let [n, h, w, c] = shape;
    if args.out.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
        atomic::write_file(&args.out, picture::grid_png(images, shape, None))?;
    } else {
        std::fs::create_dir_all(&args.out).map_err(Error::file("cannot create", &args.out))?;
        for (i, image) in images.chunks_exact(h * w * c).enumerate() {
            let path = args.out.join(format!("{:06}.png", args.first + i as u64));
            atomic::write_file(&path, picture::image_png(image, [h, w, c]))?;
        }
    }
    let mut written = vec![args.out.clone()];
    if let Some(path) = &args.tensors {
        let nchw = [n, c, h, w];
        let samples = Tensor::f32(&nchw, nhwc_to_nchw(images, nchw)?)?;
        let x_t = noise.map(|x| Tensor::f32(&nchw, nhwc_to_nchw(&x, nchw)?)).transpose()?;
        let mut list = vec![("samples", &samples)];
        list.extend(x_t.as_ref().map(|x| ("x_T", x)));
        tensors::write(path, &list)?;
        written.push(path.clone());
    }
    Ok(written)
}
