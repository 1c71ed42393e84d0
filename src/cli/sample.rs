//! `langevin sample`: images from a model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use langevin::backend::{Backend, Engine, Requirement, WeightSet, human_bytes};
use langevin::checkpoint::atomic;
use langevin::checkpoint::tensors::{self, Tensor, nchw_to_nhwc, nhwc_to_nchw};
use langevin::config::{MAX_BATCH, SampleConfig};
use langevin::diffusion::sampler::run::{Request, Samples};
use langevin::diffusion::sampler::{Kind, Options, Setup};
use langevin::model::Conditioning;
use langevin::plan::Space;
use langevin::sample::{Drawing, Ready};
use langevin::train::progress::Progress;
use langevin::{Error, Result, picture};

use super::model::Model;
use super::plot::{self, Plot};
use super::{Global, ModelOrData, Settings, Weights, output};

#[derive(Args, Debug)]
pub struct SampleArgs {
    #[command(flatten)]
    model: ModelOrData,
    /// A .png file for one grid, or a folder for one picture an image
    #[arg(long, value_name = "grid.png|DIR")]
    out: PathBuf,
    /// Images to draw
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Index of the first image: image i of a seed is always the same
    #[arg(long, default_value_t = 0, value_name = "N")]
    first: u64,
    /// Images of one batch; changes speed and memory, not the images
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// By default the one the model's scheduler names; a wrong name lists them all
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// Steps; by default all T for ddpm, else 50. Heun's and edm's take two evaluations each
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// DDIM: share of the ancestral noise, 0 (deterministic) to 1
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    eta: Option<f64>,
    /// Seed of the noise
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Which weights
    #[arg(long, default_value = "ema")]
    weights: Weights,
    /// Class of all images, where the network has classes; by default they take turns
    #[arg(long, value_name = "K")]
    class: Option<u32>,
    /// Classifier-free guidance: uncond + W (cond - uncond); 1 is off
    #[arg(long, default_value_t = 1.0, value_name = "W", allow_negative_numbers = true)]
    guidance: f64,
    /// Safetensors with x_T [n,c,h,w], standard normal, and for samplers that draw z [rows,n,c,h,w]
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Safetensors to write: samples [n,c,h,w] before the conversion to 8 bits
    #[arg(long, value_name = "FILE")]
    tensors: Option<PathBuf>,
    /// Also write the state after every N updates: a grid NAME-trajectory.png, and `trajectory` in --tensors
    #[arg(long, value_name = "N")]
    trajectory: Option<usize>,
    /// Points in the plane: what --out shows; by default scatter
    #[arg(long, value_name = "KIND")]
    plot: Option<Plot>,
    #[command(flatten)]
    settings: Settings,
}

/// Given noise in memory order.
struct Noise {
    start: Vec<f32>,
    z: Option<Vec<f32>>,
}

/// Defaults the run kept for drawing, if the model came from one.
fn defaults(model: &Model) -> SampleConfig {
    let extras = model.files.extras.as_ref();
    let stored = extras.and_then(|e| serde_json::from_value(e.get("sample")?.clone()).ok());
    stored.unwrap_or_default()
}

fn read_noise(path: &Path, count: usize, [h, w, c]: [usize; 3]) -> Result<Noise> {
    let file = tensors::read(path)?;
    let (shape, x) = file.floats("x_T", ["n", "c", "h", "w"])?;
    if shape[1..] != [c, h, w] || shape[0] < count {
        return Err(Error::content(
            path,
            format!("tensor `x_T` has shape {shape:?}; [{count}, {c}, {h}, {w}] is needed"),
        ));
    }
    let len = c * h * w;
    let start = nchw_to_nhwc(&x[..count * len], [count, c, h, w])?;
    if file.get("z").is_none() {
        return Ok(Noise { start, z: None });
    }
    let ([rows, n, zc, zh, zw], values) = file.floats("z", ["rows", "n", "c", "h", "w"])?;
    if [zc, zh, zw] != [c, h, w] || n != shape[0] {
        return Err(Error::content(
            path,
            format!(
                "tensor `z` has shape {:?}; [rows, {}, {c}, {h}, {w}] is needed",
                [rows, n, zc, zh, zw],
                shape[0]
            ),
        ));
    }
    let mut z = Vec::with_capacity(rows * count * len);
    for row in values.chunks_exact(n * len) {
        z.extend(nchw_to_nhwc(&row[..count * len], [count, c, h, w])?);
    }
    Ok(Noise { start, z: Some(z) })
}

fn options(args: &SampleArgs, config: &SampleConfig, kind: Kind, named: bool) -> Result<Options> {
    // The run's own step count belongs to its own sampler.
    let steps = args.steps.or(if named { None } else { config.steps });
    let mut options = Options { steps, ..Options::default() };
    if let Some(eta) = args.eta {
        if kind != Kind::Ddim {
            return Err(Error::Usage("--eta is DDIM's: add --sampler ddim".into()));
        }
        options.eta = eta;
    }
    for assignment in &args.settings.set {
        let Some(setting) = assignment.trim().strip_prefix("sampler.") else { continue };
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        options.set(kind, key.trim(), value.trim())?;
    }
    Ok(options)
}

fn classes(args: &SampleArgs, model: &Model, count: usize) -> Result<(Vec<u32>, u32)> {
    match model.network.class_input() {
        Conditioning::Row(rows) => {
            let null = rows as u32 - 1;
            if let Some(class) = args.class {
                if class as usize >= rows {
                    return Err(Error::Usage(format!(
                        "--class {class}: the network has classes 0 to {null}"
                    )));
                }
                return Ok((vec![class; count], null));
            }
            // The last row stands for no class where the run knows fewer.
            let known =
                model.files.extras.as_ref().and_then(|e| Some(e.get("classes")?.as_array()?.len()));
            let turns = known.filter(|&k| k > 0 && k <= rows).unwrap_or(rows) as u64;
            Ok(((0..count as u64).map(|i| ((args.first + i) % turns) as u32).collect(), null))
        }
        Conditioning::Absent if args.class.is_some() => {
            Err(Error::Usage("--class: the network has no classes".into()))
        }
        Conditioning::Absent if args.guidance != 1.0 => {
            Err(Error::Usage("--guidance: the network has no classes to guide by".into()))
        }
        Conditioning::Value => Ok((vec![args.class.unwrap_or(0); count], 0)),
        _ => Ok((Vec::new(), 0)),
    }
}

/// Images of a model and what is said of them.
pub struct Drawn {
    pub samples: Samples,
    pub count: usize,
    /// `[h, w, c]`
    pub image: [usize; 3],
    pub sampler: &'static str,
    pub seconds: f64,
}

pub fn run(mut args: SampleArgs, global: &Global) -> Result<()> {
    let model = args.model.open(&args.settings.set)?;
    check_targets(&args)?;
    if let Some(kind) = args.plot {
        if !picture::is_plane(&model.image_shape()?) || !is_picture(&args.out) {
            return Err(Error::Usage(
                "--plot is for models of points in the plane, and --out is then a .png file".into(),
            ));
        }
        if kind == Plot::Field {
            let png = plot::field(&model, &model.weights(args.weights)?.0, global)?;
            atomic::write_file(&args.out, png)?;
            return output::line(&format!("score field: `{}`", args.out.display()));
        }
        if kind == Plot::Trajectory {
            args.trajectory.get_or_insert(1);
        }
    }
    let drawn = draw(&args, &model, global)?;
    let Drawn { samples, count, image, sampler, seconds } = drawn;
    let written = write(&args, &model, &samples, count, image)?;
    if global.json {
        return output::json(&serde_json::json!({
            "images": count,
            "sampler": sampler,
            "evaluations": samples.evaluations,
            "evaluations_by_image": samples.evaluations_by_image,
            "seconds": seconds,
            "written": written,
        }));
    }
    let names: Vec<_> = written.iter().map(|p| format!("`{}`", p.display())).collect();
    output::line(&format!(
        "{count} images, {} evaluations of the network ({:.1} an image), {seconds:.1} s: {}",
        output::grouped(samples.evaluations),
        samples.evaluations as f64 / count as f64,
        names.join(", ")
    ))
}

/// Draws what the arguments ask for, writing nothing.
pub fn draw(args: &SampleArgs, model: &Model, global: &Global) -> Result<Drawn> {
    let say = |text: String| {
        if !global.json {
            eprintln!("{text}");
        }
    };
    let config = defaults(model);
    let count = args.count.unwrap_or(config.count);
    let batch = args.batch.unwrap_or(config.batch).min(count);
    if count == 0 || args.batch == Some(0) {
        return Err(Error::Usage("--count and --batch must be at least 1".into()));
    }
    if batch > MAX_BATCH {
        return Err(Error::Usage(format!("--batch takes at most {MAX_BATCH}")));
    }
    if !args.guidance.is_finite() {
        return Err(Error::Usage("--guidance must be a finite number".into()));
    }
    if args.trajectory == Some(0) {
        return Err(Error::Usage(
            "--trajectory takes the updates between two states, 1 or more".into(),
        ));
    }
    langevin::random::check_images(args.first, count as u64)?;
    let image = model.image_shape()?;
    let named = args.sampler.is_some();
    let kind = match args.sampler.as_ref().or(config.sampler.as_ref()) {
        Some(name) => Kind::from_name(name)?,
        None => Kind::from_config(&model.scheduler)?,
    };
    let options = options(args, &config, kind, named)?;

    let (classes, null_class) = classes(args, model, count)?;
    let noise = args.noise.as_ref().map(|path| read_noise(path, count, image)).transpose()?;
    let drawing = Drawing {
        network: &model.network,
        kind,
        setup: Setup::new(
            model.denoiser.clone(),
            model.sampled.clone(),
            &model.scheduler,
            options,
        )?,
        image,
        batch,
        guidance: args.guidance,
        given_noise: noise.is_some(),
    };
    let Prepared { mut engine, ready, rows, stages, notes } = global
        .on_device(|backend| prepare(args, model, &drawing, count, noise.as_ref(), backend))?;
    notes.into_iter().for_each(say);

    let began = Instant::now();
    let bar = Progress::new("sample", stages, 0);
    let request = Request {
        seed: args.seed,
        first: args.first,
        count,
        start: noise.as_ref().map(|n| n.start.as_slice()),
        noise: noise.as_ref().filter(|_| rows > 0).and_then(|n| n.z.as_deref()),
        classes: &classes,
        null_class,
        trajectory: args.trajectory,
        ..Request::default()
    };
    let samples = ready.draw(&mut engine, &request, &mut |done, _| {
        bar.update(done as u64, "");
        Ok(())
    })?;
    bar.finish();
    let seconds = began.elapsed().as_secs_f64();
    Ok(Drawn { samples, count, image, sampler: kind.name(), seconds })
}

/// A sampler on its device, and what is to be said of it.
struct Prepared {
    engine: Engine,
    ready: Ready,
    /// Rows of noise that its updates draw.
    rows: usize,
    /// Steps of the progress bar.
    stages: u64,
    notes: Vec<String>,
}

/// Checks what the drawing needs before anything large is allocated, and makes it ready.
fn prepare(
    args: &SampleArgs,
    model: &Model,
    drawing: &Drawing,
    count: usize,
    noise: Option<&Noise>,
    backend: Box<dyn Backend>,
) -> Result<Prepared> {
    let engine = Engine::new(backend, 0, false)?;
    let [h, w, c] = drawing.image;
    let drawn = (count as u64).checked_mul((h * w * c * 4 * 2) as u64);
    let available = engine.backend().info().memory_bytes;
    if drawn.is_none_or(|bytes| available > 0 && bytes > available) {
        return Err(Error::Device {
            device: engine.backend().info().name,
            problem: format!(
                "{count} images do not fit in memory together; draw them in parts with --first and --count"
            ),
        });
    }
    let prepared = drawing.prepare(&engine)?;
    let rows = prepared.sampler.noise_rows();
    if let (Some(path), Some(noise)) = (&args.noise, noise) {
        let there = noise.z.as_ref().map_or(0, |z| z.len() / (count * h * w * c));
        if there < rows {
            return Err(Error::content(
                path,
                format!("tensor `z` has {there} rows; {} takes {rows}", prepared.sampler.name),
            ));
        }
    }
    let mut notes: Vec<String> =
        prepared.sampler.notes.iter().map(|note| format!("note: {note}")).collect();
    let len = model.parameters.arena_len();
    let need = prepared.requirement(len);
    let need = Requirement { staging: prepared.host_bytes(len, count), ..need };
    engine.check(&need, "lower --batch")?;
    let mut engine = Engine::new(engine.into_backend(), len, false)?;
    let (arena, report) = model.weights(args.weights)?;
    notes.push(format!("{report}"));
    notes.push(format!(
        "{} images by {}, {}; memory {}",
        count,
        prepared.sampler.name,
        prepared.sampler.cost(),
        human_bytes(need.total() as u64)
    ));
    engine.set_arena(Space::Parameters, &arena)?;
    let batches = count.div_ceil(drawing.batch);
    let stages = (prepared.sampler.progress_steps(drawing.batch) * batches) as u64;
    let ready = prepared.load(&mut engine, WeightSet::Raw)?;
    Ok(Prepared { engine, ready, rows, stages, notes })
}

/// Finds out before hours of drawing that a result could not be written.
fn check_targets(args: &SampleArgs) -> Result<()> {
    if args.tensors.as_ref() == Some(&args.out) {
        return Err(Error::Usage("--out and --tensors name the same file".into()));
    }
    let extension = args.out.extension().map(|e| e.to_ascii_lowercase());
    if extension
        .is_some_and(|e| ["jpg", "jpeg", "gif", "webp", "bmp", "tiff"].iter().any(|o| e == *o))
    {
        return Err(Error::Usage(format!(
            "--out `{}`: pictures are written as .png; or name a folder",
            args.out.display()
        )));
    }
    let grid = is_picture(&args.out).then_some(&args.out);
    for file in grid.into_iter().chain(&args.tensors) {
        // Dropped without a commit, it leaves no trace.
        drop(atomic::AtomicFile::create(file)?);
    }
    Ok(())
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"))
}

/// Writes pictures and tensors; says what was written.
fn write(
    args: &SampleArgs,
    model: &Model,
    samples: &Samples,
    count: usize,
    [h, w, c]: [usize; 3],
) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    let shape = [count, h, w, c];
    let in_plane = picture::is_plane(&[h, w, c]);
    if in_plane && is_picture(&args.out) {
        let plot = args.plot.unwrap_or(Plot::Scatter);
        atomic::write_file(&args.out, plot::of_samples(plot, model, samples))?;
        written.push(args.out.clone());
    } else if is_picture(&args.out) {
        atomic::write_file(&args.out, picture::grid_png(&samples.images, shape, None))?;
        written.push(args.out.clone());
    } else {
        std::fs::create_dir_all(&args.out).map_err(Error::file("cannot create", &args.out))?;
        for (i, image) in samples.images.chunks_exact(h * w * c).enumerate() {
            let path = args.out.join(format!("{:06}.png", args.first + i as u64));
            atomic::write_file(&path, picture::image_png(image, [h, w, c]))?;
        }
        written.push(args.out.clone());
    }
    let nchw = [count, c, h, w];
    if !samples.trajectory.is_empty() && !in_plane {
        // One row an image, noise to the left.
        let frames = samples.trajectory.len();
        let shown = count.min(16);
        let mut rows = Vec::with_capacity(shown * frames * h * w * c);
        for image in 0..shown {
            for frame in &samples.trajectory {
                rows.extend_from_slice(&frame.images[image * h * w * c..][..h * w * c]);
            }
        }
        let stem = args.out.with_extension("");
        let mut name = stem.file_name().unwrap_or_default().to_os_string();
        name.push("-trajectory.png");
        let path = stem.with_file_name(name);
        let png = picture::grid_png(&rows, [shown * frames, h, w, c], Some(frames));
        atomic::write_file(&path, png)?;
        written.push(path);
    }
    if let Some(path) = &args.tensors {
        let images = Tensor::f32(&nchw, nhwc_to_nchw(&samples.images, nchw)?)?;
        let mut named = vec![("samples", images)];
        if !samples.trajectory.is_empty() {
            let mut all = Vec::new();
            for frame in &samples.trajectory {
                all.extend(nhwc_to_nchw(&frame.images, nchw)?);
            }
            let shape = [samples.trajectory.len(), count, c, h, w];
            named.push(("trajectory", Tensor::f32(&shape, all)?));
            let updates = samples.trajectory.iter().map(|f| f.updates as i64).collect::<Vec<_>>();
            named.push(("updates", Tensor::i64(&[updates.len()], updates)?));
        }
        let list: Vec<_> = named.iter().map(|(name, t)| (*name, t)).collect();
        tensors::write(path, &list)?;
        written.push(path.clone());
    }
    Ok(written)
}
