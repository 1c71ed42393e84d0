//! `langevin evaluate`: scores of samples against data.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser};
use langevin::backend::Precision;
use langevin::backend::cpu::pool::Pool;
use langevin::checkpoint::tensors::{self, nchw_to_nhwc};
use langevin::checkpoint::{atomic, diffusers};
use langevin::config::{self, Config};
use langevin::data::{DataOptions, Dataset, SPECS, read_matrix};
use langevin::diffusion::empirical::{Nearest, nearest_two};
use langevin::evaluate::audit::{self, Audit};
use langevin::evaluate::{Features, Options, Scores, evaluate};
use langevin::model::inception::{FEATURES, Inception};
use langevin::train::progress::Progress;
use langevin::{Error, Result};
use serde_json::{Map, Value, json};

use super::sample::{self, SampleArgs};
use super::{Global, Settings, model, output};

/// Images drawn from a model where `--count` says nothing and the data has as many.
const DEFAULT_COUNT: usize = 2000;

#[derive(Args, Debug)]
pub struct EvaluateArgs {
    /// What to score: a model (its images are drawn), a folder of pictures, a .npz file, a
    /// .safetensors file with `samples [n,c,h,w]`, or a data SPEC
    #[arg(value_name = "MODEL|DIR", required_unless_present = "features")]
    samples: Option<PathBuf>,
    /// The data to score against: digits, idx:PATH, cifar10:DIR, folder:DIR, npz:FILE or points:NAME
    #[arg(long, value_name = "SPEC", required_unless_present = "features")]
    data: Option<String>,
    /// Score features and not pixels: .npz or .safetensors with `samples [n,d]` and `data [m,d]`
    #[arg(long, value_name = "FILE")]
    features: Option<PathBuf>,
    /// Score Inception features (FID, KID): weights of pt_inception-2015-12-05 as .safetensors,
    /// converted as the documentation of langevin::model::inception says. Always in f32
    #[arg(long, value_name = "FILE", conflicts_with = "features")]
    inception: Option<PathBuf>,
    /// Images to draw from a model; by default as many as the data, at most 2000
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// As in sample
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// As in sample
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// As in sample
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// As in sample
    #[arg(long, value_name = "X")]
    eta: Option<f64>,
    /// Seed of the drawn images and of the MMD's subsets
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Which weights of the model
    #[arg(long, default_value = "ema", value_name = "ema|raw")]
    weights: String,
    /// Neighbours k of precision, recall, density and coverage
    #[arg(long, default_value_t = 5, value_name = "K")]
    neighbours: usize,
    /// Vectors of each side that those four look at, at most
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    most: usize,
    /// Vectors of a subset of the MMD
    #[arg(long, default_value_t = 1000, value_name = "N")]
    subset: usize,
    /// Subsets of the MMD
    #[arg(long, default_value_t = 100, value_name = "N")]
    subsets: usize,
    /// A .png file for the samples nearest to training images: sample, nearest, next nearest
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Images on one side of the comparison.
struct Images {
    /// For people: where they are from.
    from: String,
    /// `[n, h, w, c]` in model range.
    values: Vec<f32>,
    shape: [usize; 4],
}

impl Images {
    fn of(from: &str, dataset: &Dataset) -> Images {
        let values = dataset.first_values(dataset.len());
        Images { from: from.into(), values, shape: dataset.shape() }
    }

    fn len(&self) -> usize {
        self.shape[1..].iter().product()
    }
}

/// `sample`'s arguments, read by `sample`'s own parser.
#[derive(Parser)]
struct SampleLine {
    #[command(flatten)]
    args: SampleArgs,
}

impl EvaluateArgs {
    /// `--set data.*`, and the rest, which is the model's.
    fn settings(&self) -> Result<(DataOptions, Vec<String>)> {
        let is_data = |s: &&String| s.trim().starts_with("data.");
        let (data, rest): (Vec<&String>, Vec<&String>) =
            self.settings.set.iter().partition(is_data);
        let mut value = Value::Object(Map::new());
        for assignment in data {
            config::set(&mut value, assignment)?;
        }
        let data = Config::from_value(value)?.data;
        let options = DataOptions {
            size: data.size,
            channels: data.channels,
            limit: data.limit,
            ..DataOptions::default()
        };
        Ok((options, rest.into_iter().cloned().collect()))
    }

    /// Draws `count` images from a model.
    fn draw(&self, path: &Path, count: usize, set: &[String], global: &Global) -> Result<Images> {
        let mut line: Vec<OsString> =
            ["sample".into(), path.into(), "--out".into(), "unused.png".into()].into();
        let count = self.count.unwrap_or(count.min(DEFAULT_COUNT));
        let mut flag = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                line.extend([format!("--{name}").into(), value.into()]);
            }
        };
        flag("count", Some(count.to_string()));
        flag("batch", self.batch.map(|v| v.to_string()));
        flag("sampler", self.sampler.clone());
        flag("steps", self.steps.map(|v| v.to_string()));
        flag("eta", self.eta.map(|v| v.to_string()));
        flag("seed", Some(self.seed.to_string()));
        flag("weights", Some(self.weights.clone()));
        for assignment in set {
            flag("set", Some(assignment.clone()));
        }
        let line = SampleLine::try_parse_from(line).map_err(|e| Error::Usage(e.to_string()))?;
        let model = model::open(path, set)?;
        let drawn = sample::draw(&line.args, &model, global)?;
        let [h, w, c] = drawn.image;
        let evaluations = drawn.samples.evaluations / drawn.count as u64;
        Ok(Images {
            from: format!(
                "`{}`, {} with {evaluations} evaluations, seed {}",
                path.display(),
                drawn.sampler,
                self.seed
            ),
            values: drawn.samples.images,
            shape: [drawn.count, h, w, c],
        })
    }

    /// The samples, whatever they are given as.
    fn read_samples(
        &self,
        path: &Path,
        data: &Images,
        set: &[String],
        global: &Global,
    ) -> Result<Images> {
        let text = path.to_string_lossy();
        let is_model = path.is_dir() && is_model(path);
        if !is_model {
            let drawing = [
                ("--count", self.count.is_some()),
                ("--batch", self.batch.is_some()),
                ("--sampler", self.sampler.is_some()),
                ("--steps", self.steps.is_some()),
                ("--eta", self.eta.is_some()),
                ("--set", !set.is_empty()),
            ];
            if let Some((flag, _)) = drawing.iter().find(|(_, given)| *given) {
                return Err(Error::Usage(format!(
                    "{flag} is for drawing from a model, and `{text}` is none"
                )));
            }
        }
        let extension = path.extension().map(|e| e.to_ascii_lowercase());
        let named = |kind: &str| format!("{kind}:{text}");
        let spec = match extension {
            _ if is_model => return self.draw(path, data.shape[0], set, global),
            Some(e) if e == "safetensors" => return read_tensors(path),
            Some(e) if e == "npz" && path.is_file() => named("npz"),
            _ if path.is_dir() => named("folder"),
            _ if path.exists() => {
                return Err(Error::content(
                    path,
                    "is neither a folder, nor .npz or .safetensors; name its form as a data SPEC",
                ));
            }
            _ => text.to_string(),
        };
        // Grey and colour files are brought to what the data is; sizes are left.
        let channels = (spec.starts_with("folder:") && matches!(data.shape[3], 1 | 3))
            .then_some(data.shape[3]);
        let dataset = Dataset::open(&spec, &DataOptions { channels, ..DataOptions::default() })
            .map_err(|error| match error {
                Error::Usage(problem) if spec == text => Error::Usage(format!(
                    "`{text}` is no model, folder, .npz or .safetensors file, nor a data SPEC \
                     ({SPECS}): {problem}"
                )),
                other => other,
            })?;
        Ok(Images::of(&format!("`{spec}`"), &dataset))
    }
}

/// Whether a folder holds a model and not pictures.
fn is_model(path: &Path) -> bool {
    ["checkpoints", "model_index.json", "config.json", "unet"].iter().any(|f| path.join(f).exists())
        || diffusers::open(path).is_ok()
}

fn read_tensors(path: &Path) -> Result<Images> {
    let file = tensors::read(path)?;
    let ([n, c, h, w], values) = file.floats("samples", ["n", "c", "h", "w"])?;
    let values = nchw_to_nhwc(values, [n, c, h, w])?;
    Ok(Images { from: format!("`{}`", path.display()), values, shape: [n, h, w, c] })
}

/// Features of both sides from a file.
fn read_features(path: &Path) -> Result<[Features; 2]> {
    let read = |name: &'static str| -> Result<Features> {
        let (values, dim) = match path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz")) {
            true => {
                let (values, [_, dim]) = read_matrix(path, name)?;
                (values, dim)
            }
            false => {
                let file = tensors::read(path)?;
                let ([_, dim], values) = file.floats(name, ["n", "d"])?;
                (values.to_vec(), dim)
            }
        };
        let what = format!("`{name}` of `{}`", path.display());
        Features::new(&what, &values, dim).map_err(|e| Error::content(path, e.to_string()))
    };
    Ok([read("samples")?, read("data")?])
}

/// What is printed: as JSON, and as lines.
struct Outcome {
    facts: Map<String, Value>,
    lines: Vec<String>,
}

impl Outcome {
    fn say(&mut self, key: &str, value: Value, line: String) {
        self.facts.insert(key.into(), value);
        self.lines.push(line);
    }
}

pub fn run(args: EvaluateArgs, global: &Global) -> Result<()> {
    let options = Options {
        neighbours: args.neighbours,
        most: args.most,
        subset: args.subset,
        subsets: args.subsets,
        seed: args.seed,
    };
    if args.most == 0 {
        return Err(Error::Usage("--most takes at least 1".into()));
    }
    if let Some(file) = &args.pairs {
        // Dropped without a commit, it leaves no trace.
        drop(atomic::AtomicFile::create(file)?);
    }
    let given = args.features.as_deref().map(read_features).transpose()?;
    let pool = Pool::new(global.threads);
    let mut outcome = Outcome { facts: Map::new(), lines: Vec::new() };
    let images = match (&args.samples, &args.data) {
        (Some(samples), Some(spec)) => {
            let (data_options, set) = args.settings()?;
            let data = Images::of(&format!("`{spec}`"), &Dataset::open(spec, &data_options)?);
            let samples = args.read_samples(samples, &data, &set, global)?;
            check_shapes(&samples, &data)?;
            Some([samples, data])
        }
        (None, None) if args.pairs.is_none() => None,
        _ => {
            return Err(Error::Usage(
                "images are compared with MODEL|DIR and --data together; --features alone \
                 compares features"
                    .into(),
            ));
        }
    };
    if let Some([samples, data]) = &images {
        for (key, side) in [("samples", samples), ("data", data)] {
            let [n, h, w, c] = side.shape;
            let fact = json!({ "from": side.from, "count": n, "image": [h, w, c] });
            let line = format!("{key:<10}{n} images {h}x{w}x{c} from {}", side.from);
            outcome.say(key, fact, line);
        }
    }
    let (on, features) = match (given, &images) {
        (Some(features), _) => ("features of a file", features),
        (None, Some([samples, data])) => match &args.inception {
            Some(file) => {
                let network = Inception::open(file)?;
                let of = |what: &str, side| inception_features(&network, what, side, global);
                ("Inception features", [of("samples", samples)?, of("data", data)?])
            }
            None => {
                let of = |what: &str, side: &Images| Features::new(what, &side.values, side.len());
                ("pixels", [of("samples", samples)?, of("data", data)?])
            }
        },
        (None, None) => unreachable!("clap asks for one of them"),
    };
    let scores = evaluate(&pool, &features[0], &features[1], &options)?;
    say_scores(&mut outcome, on, &scores);
    if let Some([samples, data]) = &images {
        let nearest = nearest_two(&pool, &samples.values, &data.values, data.len())?;
        let summary = audit::audit(&nearest);
        say_audit(&mut outcome, &summary);
        if let Some(file) = &args.pairs {
            write_pairs(file, &summary, &nearest, samples, data)?;
            outcome.say("pairs", json!(file), format!("closest   `{}`", file.display()));
        }
    }
    match global.json {
        true => output::json(&Value::Object(outcome.facts)),
        false => output::line(&outcome.lines.join("\n")),
    }
}

fn inception_features(
    network: &Inception,
    what: &str,
    images: &Images,
    global: &Global,
) -> Result<Features> {
    let bar = Progress::new("inception", images.shape[0] as u64, 0);
    let global = Global { precision: Precision::F32, ..global.clone() };
    let mut progress = |done| bar.update(done as u64, what);
    let values = global.on_device(|backend| {
        network.features(backend, &images.values, images.shape, &mut progress)
    })?;
    bar.finish();
    Features::new(what, &values, FEATURES)
}

fn check_shapes(samples: &Images, data: &Images) -> Result<()> {
    if samples.shape[1..] == data.shape[1..] {
        return Ok(());
    }
    let [_, h, w, c] = samples.shape;
    let [_, dh, dw, dc] = data.shape;
    Err(Error::Usage(format!(
        "the samples are {h}x{w}x{c} and the data is {dh}x{dw}x{dc}; bring the data to the \
         samples' form with --set data.size='[{h}, {w}]' --set data.channels={c}"
    )))
}

fn say_scores(outcome: &mut Outcome, on: &str, scores: &Scores) {
    let Scores { samples, data, dim, frechet, mmd2, neighbours, notes } = scores;
    outcome.say(
        "on",
        json!({ "what": on, "dim": dim, "samples": samples, "data": data }),
        format!("on        {dim} {on}: {samples} vectors against {data}"),
    );
    outcome.say(
        "frechet",
        json!(frechet),
        format!(
            "frechet   {:.6} (means {:.6}, covariances {:.6})",
            frechet.distance, frechet.means, frechet.covariances
        ),
    );
    outcome.say(
        "mmd2",
        json!(mmd2),
        format!(
            "mmd^2     {:.6} +- {:.6} ({} subsets of {}, std {:.6})",
            mmd2.mmd2, mmd2.standard_error, mmd2.subsets, mmd2.subset, mmd2.std
        ),
    );
    outcome.say(
        "neighbours",
        json!(neighbours),
        format!(
            "k = {:<6}precision {:.4}, recall {:.4}, density {:.4}, coverage {:.4}",
            neighbours.k,
            neighbours.precision,
            neighbours.recall,
            neighbours.density,
            neighbours.coverage
        ),
    );
    outcome.facts.insert("notes".into(), json!(notes));
    outcome.lines.extend(notes.iter().map(|note| format!("note      {note}")));
}

fn say_audit(outcome: &mut Outcome, audit: &Audit) {
    let [least, first, _, _, median, ..] = audit.ratio;
    outcome.say(
        "nearest",
        json!(audit),
        format!(
            "nearest   training image at a distance of {:.4} (median); over the next nearest's: \
             least {least:.4}, 1 % below {first:.4}, median {median:.4}; {:.2} % below 1/3",
            audit.distance[4],
            100.0 * audit.copies
        ),
    );
}

fn write_pairs(
    file: &Path,
    audit: &Audit,
    nearest: &[Nearest],
    samples: &Images,
    data: &Images,
) -> Result<()> {
    let [_, h, w, c] = data.shape;
    let png = audit::closest_png(audit, nearest, &samples.values, &data.values, [h, w, c]);
    atomic::write_file(file, png)
}
