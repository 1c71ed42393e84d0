//! diffusers directories: what lies behind a path, and writing a pipeline.
//!
//! ```text
//! RUN/checkpoints/step-N/
//!   model_index.json                  DDPMPipeline or DDIMPipeline
//!   unet/        config.json, diffusion_pytorch_model.safetensors   averaged weights
//!   unet_raw/    the same with the raw weights
//!   scheduler/   scheduler_config.json
//!   langevin.json                     what diffusers has no field for
//!   training/    state.safetensors, state.json, manifest.json
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::{Value, json};

use super::training::{self, TrainingState};
use super::{atomic, weights};
use crate::error::{Error, Result};
use crate::plan::Parameters;

/// The diffusers release whose layout and field names are written.
pub const DIFFUSERS_VERSION: &str = "0.42.1";

pub(super) const MODEL_INDEX: &str = "model_index.json";
const NETWORK: &str = "unet";
const NETWORK_RAW: &str = "unet_raw";
const SCHEDULER: &str = "scheduler";
const CONFIG: &str = "config.json";
const SCHEDULER_CONFIG: &str = "scheduler_config.json";
const EXTRAS: &str = "langevin.json";
pub(super) const TRAINING: &str = "training";

/// What a path to a model turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A run directory; the newest valid checkpoint in it was taken.
    Run,
    /// A checkpoint of langevin: a pipeline with its training state.
    Checkpoint,
    /// A diffusers pipeline.
    Pipeline,
    /// A single diffusers model: `config.json` beside its weights.
    Flat,
}

/// The files of a model.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// What the path was.
    pub kind: Kind,
    /// The folder the files lie in; for a run, that of the checkpoint.
    pub folder: PathBuf,
    /// The network's `config.json`.
    pub network_config: Value,
    /// `scheduler_config.json`.
    pub scheduler_config: Option<Value>,
    /// `langevin.json`.
    pub extras: Option<Value>,
    /// File or index of the averaged (EMA) weights, or the only ones.
    pub weights: PathBuf,
    /// File or index of the raw weights, where both are kept.
    pub raw_weights: Option<PathBuf>,
    /// The folder of the training state.
    pub training: Option<PathBuf>,
    /// Newer checkpoints of the run that were passed over, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Finds a model: a run directory, a checkpoint, a diffusers pipeline or a flat
/// diffusers directory.
///
/// # Errors
/// The path is none of these (the error says what was looked for), or a JSON
/// file in it is damaged.
pub fn open(path: impl AsRef<Path>) -> Result<ModelFiles> {
    let path = path.as_ref();
    match fs::metadata(path) {
        Err(e) => return Err(Error::file("cannot open the model", path)(e)),
        Ok(m) if !m.is_dir() => {
            return Err(Error::checkpoint(
                path,
                "is a file; a model is a folder: a run, a checkpoint in it, or a diffusers \
                 directory",
            ));
        }
        Ok(_) => {}
    }
    if path.join(training::CHECKPOINTS).is_dir() {
        let search = training::newest_valid(path)?;
        let skipped = search.skipped;
        let Some(found) = search.found else {
            return Err(Error::checkpoint(
                path,
                match skipped.first() {
                    None => "the run has saved no checkpoint yet".to_string(),
                    Some((newest, why)) => format!(
                        "the run has no valid checkpoint; {} are damaged, the newest being `{}` \
                         ({why})",
                        skipped.len(),
                        newest.display()
                    ),
                },
            ));
        };
        return Ok(ModelFiles { kind: Kind::Run, skipped, ..open_folder(&found.path)? });
    }
    open_folder(path)
}

fn open_folder(path: &Path) -> Result<ModelFiles> {
    let network = path.join(NETWORK);
    let pipeline = network.join(CONFIG).is_file();
    if !pipeline && !path.join(CONFIG).is_file() {
        return Err(Error::checkpoint(
            path,
            "holds no model; looked for checkpoints/ (a run), unet/config.json (a checkpoint or \
             a diffusers pipeline) and config.json (a flat diffusers directory)",
        ));
    }
    let training = path.join(TRAINING);
    let training = (pipeline && training.join(training::STATE_JSON).is_file()).then_some(training);
    let network_folder = if pipeline { &network } else { path };
    let schedulers = [path.join(SCHEDULER).join(SCHEDULER_CONFIG), path.join(SCHEDULER_CONFIG)];
    let raw = path.join(NETWORK_RAW);
    Ok(ModelFiles {
        kind: match (&training, pipeline) {
            (Some(_), _) => Kind::Checkpoint,
            (None, true) => Kind::Pipeline,
            (None, false) => Kind::Flat,
        },
        folder: path.to_path_buf(),
        network_config: read_object(&network_folder.join(CONFIG))?,
        scheduler_config: schedulers
            .iter()
            .find(|p| p.is_file())
            .map(|p| read_object(p))
            .transpose()?,
        extras: Some(path.join(EXTRAS))
            .filter(|p| p.is_file())
            .map(|p| read_object(&p))
            .transpose()?,
        weights: weights::locate(network_folder)?,
        raw_weights: (pipeline && raw.is_dir()).then(|| weights::locate(&raw)).transpose()?,
        training,
        skipped: Vec::new(),
    })
}

/// Reads a JSON file. Python writes `Infinity` and `NaN` where JSON has no word
/// for them (a scheduler's `lambda_min_clipped`): infinities become the largest
/// f64, NaN becomes null.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(Error::file("cannot read", path))?;
    serde_json::from_str(&without_infinities(&text))
        .map_err(|e| Error::content(path, format!("is not valid JSON: {e}")))
}

fn read_object(path: &Path) -> Result<Value> {
    let value = read_json(path)?;
    if value.is_object() {
        return Ok(value);
    }
    Err(Error::content(path, "holds no JSON object of settings"))
}

fn without_infinities(text: &str) -> Cow<'_, str> {
    if !text.contains("Infinity") && !text.contains("NaN") {
        return text.into();
    }
    // Strings stand at the odd places once escaped characters are set aside.
    let mut out = String::with_capacity(text.len());
    let mut in_string = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (taken, put) = match c {
            '"' => {
                in_string = !in_string;
                (1, "\"")
            }
            '\\' if in_string => {
                let len = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                (len, &rest[..len])
            }
            'I' if !in_string && rest.starts_with("Infinity") => (8, "1.7976931348623157e308"),
            'N' if !in_string && rest.starts_with("NaN") => (3, "null"),
            _ => (c.len_utf8(), &rest[..c.len_utf8()]),
        };
        out.push_str(put);
        rest = &rest[taken..];
    }
    out.into()
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value is always JSON");
    text.push('\n');
    atomic::write_file(path, text)
}

/// Everything that goes into a pipeline directory.
#[derive(Clone, Copy)]
pub struct Pipeline<'a> {
    /// The network's `config.json`, with its `_class_name`.
    pub network_config: &'a Value,
    /// `scheduler_config.json`, with its `_class_name`.
    pub scheduler_config: &'a Value,
    /// `langevin.json`: what diffusers has no field for.
    pub extras: &'a Value,
    /// Names and layout of the weights.
    pub parameters: &'a Parameters,
    /// Averaged weights, the ones a pipeline draws with.
    pub average: &'a [f32],
    /// Raw weights, where both are kept.
    pub raw: Option<&'a [f32]>,
    /// State to go on training from.
    pub training: Option<TrainingState<'a>>,
}

/// Writes a pipeline directory. It is built in a hidden folder beside `path`,
/// every file and folder synced, and then renamed: at any moment `path` is
/// absent, or whole. An existing checkpoint of that name is replaced.
///
/// # Errors
/// The files cannot be written (nothing is left behind), or `path` is a folder
/// with other things in it, which would be lost.
pub fn save_pipeline(path: impl AsRef<Path>, pipeline: &Pipeline) -> Result<()> {
    let path = path.as_ref();
    refuse_foreign(path)?;
    let parent = atomic::parent_of(path);
    let fail = |e| Error::file("cannot write", path)(atomic::explain(e));
    fs::create_dir_all(parent).map_err(fail)?;
    let staging = Staging(atomic::temporary_path(parent));
    fs::create_dir(&staging.0).map_err(fail)?;
    write_pipeline(&staging.0, pipeline)?;
    publish(&staging.0, path)
}

/// A folder under construction; removed unless it was renamed.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        if self.0.exists() {
            // A failure here leaves a hidden folder that the next start removes.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Replacing a folder removes everything in it: only what this module writes,
/// whole or damaged, may be lost.
fn refuse_foreign(path: &Path) -> Result<()> {
    const OWN: [&str; 6] = [MODEL_INDEX, NETWORK, NETWORK_RAW, SCHEDULER, EXTRAS, TRAINING];
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::file("cannot write", path)(atomic::explain(e))),
    };
    for entry in entries {
        let name = entry.map_err(Error::file("cannot list", path))?.file_name();
        if !OWN.iter().any(|own| name == *own) {
            let name = name.to_string_lossy();
            return Err(Error::checkpoint(
                path,
                format!(
                    "exists and holds `{name}`, which is no part of a pipeline; it is not \
                         overwritten"
                ),
            ));
        }
    }
    Ok(())
}

fn write_pipeline(folder: &Path, p: &Pipeline) -> Result<()> {
    let class = |config: &Value, what: &str| match config.get("_class_name") {
        Some(Value::String(name)) => Ok(name.clone()),
        _ => Err(Error::checkpoint(folder, format!("the {what} configuration has no _class_name"))),
    };
    let network_class = class(p.network_config, "network")?;
    let scheduler_class = class(p.scheduler_config, "scheduler")?;
    let pipeline_class =
        if scheduler_class == "DDIMScheduler" { "DDIMPipeline" } else { "DDPMPipeline" };
    // The library that diffusers would look for a class of ours in.
    let library = if network_class.starts_with("Langevin") { "langevin" } else { "diffusers" };
    let subfolder = |name: &str| {
        let path = folder.join(name);
        fs::create_dir(&path)
            .map_err(|e| Error::file("cannot write", &path)(atomic::explain(e)))?;
        Ok::<_, Error>(path)
    };

    for (name, arena) in [(NETWORK, Some(p.average)), (NETWORK_RAW, p.raw)] {
        let Some(arena) = arena else { continue };
        let network = subfolder(name)?;
        write_json(&network.join(CONFIG), &versioned(p.network_config))?;
        weights::save(network.join(weights::FILE_NAME), p.parameters, arena, &BTreeMap::new())?;
    }
    let scheduler = subfolder(SCHEDULER)?;
    write_json(&scheduler.join(SCHEDULER_CONFIG), &versioned(p.scheduler_config))?;
    write_json(&folder.join(EXTRAS), p.extras)?;
    write_json(
        &folder.join(MODEL_INDEX),
        &json!({
            "_class_name": pipeline_class,
            "_diffusers_version": DIFFUSERS_VERSION,
            "scheduler": ["diffusers", scheduler_class],
            "unet": [library, network_class],
        }),
    )?;
    if let Some(state) = &p.training {
        training::save_state(&subfolder(TRAINING)?, p.parameters, state)?;
        training::write_manifest(folder, state.progress.step)?;
    }
    atomic::sync_folder(folder)
}

/// A configuration with `_diffusers_version` behind its class, as diffusers
/// writes it.
fn versioned(config: &Value) -> Value {
    let mut out = serde_json::Map::new();
    let fields = config.as_object().into_iter().flatten();
    for (key, value) in fields.filter(|(key, _)| *key != "_diffusers_version") {
        out.insert(key.clone(), value.clone());
        if key == "_class_name" {
            out.insert("_diffusers_version".into(), DIFFUSERS_VERSION.into());
        }
    }
    Value::Object(out)
}

/// Name under which a checkpoint waits while its successor takes its place.
pub(super) fn superseded_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".superseded-{name}"))
}

fn publish(staging: &Path, path: &Path) -> Result<()> {
    let fail = |e| Error::file("cannot write", path)(atomic::explain(e));
    let superseded = superseded_path(path);
    // A folder that is not empty cannot be renamed over. A kill between the two
    // renames is undone at the next start, by `RunDirectory`.
    let replaces = path.exists();
    if replaces {
        if superseded.exists() {
            atomic::remove_any(&superseded)?;
        }
        fs::rename(path, &superseded).map_err(fail)?;
    }
    if let Err(e) = fs::rename(staging, path) {
        if replaces {
            fs::rename(&superseded, path).map_err(fail)?;
        }
        return Err(fail(e));
    }
    atomic::sync_folder(atomic::parent_of(path))?;
    if replaces {
        atomic::remove_any(&superseded)?;
    }
    Ok(())
}
