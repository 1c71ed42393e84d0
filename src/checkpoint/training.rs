//! What resuming needs beside the weights, and run directories: one writer at a
//! time, the newest valid checkpoint, pruning, cleaning up after a kill.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::atomic;
use super::diffusers::{self, MODEL_INDEX, Pipeline};
use super::format::{self, Dtype, Float, TensorFile};
use super::weights::{ParameterView, check_arena};
use crate::error::{Error, Result};
use crate::plan::Parameters;

/// The folder of a run that holds its checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";
pub(super) const STATE_JSON: &str = "state.json";
const STATE_TENSORS: &str = "state.safetensors";
const MANIFEST: &str = "training/manifest.json";
const LOCK: &str = ".lock";
const MOMENTS: [&str; 2] = ["first_moments", "second_moments"];

/// How far the training data has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Passes over the data that are complete.
    pub epoch: u64,
    /// Images of the present pass that were used.
    pub position: u64,
}

/// The numbers of a training state. Everything is a whole number, so that text
/// keeps it exactly; the rest is a function of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Finished training steps.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Next training image.
    pub cursor: Cursor,
}

/// A training state to be saved. The averaged and the raw weights are the
/// pipeline's.
#[derive(Clone, Copy)]
pub struct TrainingState<'a> {
    /// Counters.
    pub progress: &'a Progress,
    /// AdamW's first moments, an arena of the parameters' layout.
    pub first_moments: &'a [f32],
    /// AdamW's second moments, likewise.
    pub second_moments: &'a [f32],
}

pub(super) fn save_state(
    folder: &Path,
    parameters: &Parameters,
    state: &TrainingState,
) -> Result<()> {
    let mut views = Vec::new();
    for (prefix, arena) in MOMENTS.into_iter().zip([state.first_moments, state.second_moments]) {
        check_arena("save_state", parameters, arena.len())?;
        for parameter in parameters.entries.iter().filter(|p| p.trainable) {
            views
                .push((format!("{prefix}.{}", parameter.name), ParameterView { parameter, arena }));
        }
    }
    format::write(folder.join(STATE_TENSORS), views, &BTreeMap::new())?;
    let json = serde_json::to_value(state.progress).expect("numbers and text are always JSON");
    diffusers::write_json(&folder.join(STATE_JSON), &json)
}

/// Reads the training state of a checkpoint ([`diffusers::ModelFiles::training`])
/// into the moments' arenas; padding and weights that are not trained get 0.
///
/// # Errors
/// A file is damaged, or the moments do not fit the network.
pub fn load_state(
    folder: impl AsRef<Path>,
    parameters: &Parameters,
    first_moments: &mut [f32],
    second_moments: &mut [f32],
) -> Result<Progress> {
    let folder = folder.as_ref();
    let json_path = folder.join(STATE_JSON);
    let json = diffusers::read_json(&json_path)?;
    let progress = serde_json::from_value(json)
        .map_err(|e| Error::content(&json_path, format!("is not a training state: {e}")))?;
    let file = TensorFile::open(folder.join(STATE_TENSORS))?;
    let misfit = |problem: String| {
        Error::checkpoint(
            file.path(),
            format!("{problem}; resume with the configuration the run was started with"),
        )
    };
    let mut used = 0;
    for (prefix, arena) in MOMENTS.into_iter().zip([first_moments, second_moments]) {
        check_arena("load_state", parameters, arena.len())?;
        arena.fill(0.0);
        for p in parameters.entries.iter().filter(|p| p.trainable) {
            let name = format!("{prefix}.{}", p.name);
            let raw = file.get(&name).ok_or_else(|| misfit(format!("`{name}` is missing")))?;
            if raw.dtype != Dtype::F32 || raw.shape != p.disk_shape {
                return Err(misfit(format!(
                    "`{name}` is {} {:?}, the network has F32 {:?}",
                    raw.dtype, raw.shape, p.disk_shape
                )));
            }
            p.from_disk(&Float::F32.decode(raw.bytes), &mut arena[p.offset..][..p.len()]);
            used += 1;
        }
    }
    match file.names().len() - used {
        0 => Ok(progress),
        extra => Err(misfit(format!("{extra} moments belong to no weight of the network"))),
    }
}

/// What a checkpoint consists of. Written last, so that it also marks the
/// checkpoint as complete.
#[derive(Serialize, Deserialize)]
struct Manifest {
    step: u64,
    /// By path relative to the checkpoint.
    files: BTreeMap<String, ManifestEntry>,
}

#[derive(Serialize, Deserialize)]
struct ManifestEntry {
    bytes: u64,
    crc32: String,
}

/// Relative paths of all files under `folder`, sorted.
fn files_under(folder: &Path) -> Result<BTreeSet<String>> {
    fn walk(folder: &Path, prefix: &str, out: &mut BTreeSet<String>) -> Result<()> {
        let fail = |e| Error::file("cannot list", folder)(e);
        for entry in fs::read_dir(folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{name}/"), out)?;
            } else {
                out.insert(name);
            }
        }
        Ok(())
    }
    let mut out = BTreeSet::new();
    walk(folder, "", &mut out)?;
    Ok(out)
}

pub(super) fn write_manifest(folder: &Path, step: u64) -> Result<()> {
    let mut files = BTreeMap::new();
    for name in files_under(folder)? {
        let (bytes, crc32) = format::file_checksum(&folder.join(&name))?;
        files.insert(name, ManifestEntry { bytes, crc32 });
    }
    let json = serde_json::to_value(Manifest { step, files }).expect("text and numbers are JSON");
    diffusers::write_json(&folder.join(MANIFEST), &json)
}

/// Checks every byte of a checkpoint against its manifest.
///
/// # Errors
/// Something is missing or damaged; the error says what.
pub fn verify(checkpoint: impl AsRef<Path>) -> Result<u64> {
    let folder = checkpoint.as_ref();
    let path = folder.join(MANIFEST);
    let manifest: Manifest = serde_json::from_value(diffusers::read_json(&path)?)
        .map_err(|e| Error::content(&path, format!("is damaged: {e}")))?;
    let damaged = |problem: String| Err(Error::checkpoint(folder, problem));
    if step_of(folder) != Some(manifest.step) {
        return damaged(format!("its manifest belongs to step {}", manifest.step));
    }
    for required in [MODEL_INDEX, "training/state.json", "training/state.safetensors"] {
        if !manifest.files.contains_key(required) {
            return damaged(format!("its manifest does not list {required}"));
        }
    }
    for (name, entry) in &manifest.files {
        let path = folder.join(name);
        if !path.is_file() {
            return damaged(format!("{name} is missing"));
        }
        let (bytes, crc32) = format::file_checksum(&path)?;
        if bytes != entry.bytes {
            return damaged(format!("{name} has {bytes} bytes instead of {}", entry.bytes));
        }
        if crc32 != entry.crc32 {
            return damaged(format!("{name} does not match its checksum"));
        }
    }
    Ok(manifest.step)
}

fn step_of(folder: &Path) -> Option<u64> {
    let digits = folder.file_name()?.to_str()?.strip_prefix("step-")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Checkpoints of a run, newest first, valid or not.
pub fn list(run: impl AsRef<Path>) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.as_ref().join(CHECKPOINTS);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file("cannot list", &folder)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("cannot list", &folder))?.path();
        if let Some(step) = step_of(&path).filter(|_| path.is_dir()) {
            found.push((step, path));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

/// A checkpoint that was checked in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

/// Result of looking for the newest valid checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// The newest valid one, if there is any.
    pub found: Option<Found>,
    /// Newer ones that are incomplete or damaged, newest first, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Looks for the newest checkpoint of a run whose every byte is right.
///
/// # Errors
/// The folder cannot be listed. Damaged checkpoints are not errors.
pub fn newest_valid(run: impl AsRef<Path>) -> Result<Search> {
    let mut search = Search::default();
    for (step, path) in list(run)? {
        match verify(&path) {
            Ok(_) => {
                search.found = Some(Found { step, path });
                break;
            }
            Err(e) => search.skipped.push((path, e.to_string())),
        }
    }
    Ok(search)
}

/// A run directory that this process alone may write in, until it is dropped.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// The operating system drops the lock with the process, however it ends.
    _lock: File,
    /// Steps whose checkpoints this process wrote or checked.
    known_good: BTreeSet<u64>,
    /// What an earlier process left half-written and was removed.
    pub cleaned: Vec<PathBuf>,
}

impl RunDirectory {
    /// Starts a new run.
    ///
    /// # Errors
    /// The folder exists and holds anything, another process has it, or it
    /// cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let this = Self::open(path)?;
        let fail = |e| Error::file("cannot list", &this.path)(e);
        for entry in fs::read_dir(&this.path).map_err(fail)? {
            if entry.map_err(fail)?.file_name() != LOCK {
                return Err(Error::content(
                    &this.path,
                    "exists and is not empty; go on with --resume or choose another --out",
                ));
            }
        }
        Ok(this)
    }

    /// Takes a run directory, made if it is not there, and removes what a killed
    /// process left half-written.
    ///
    /// # Errors
    /// Another process has it (the error names it), or it cannot be written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let fail = |e| Error::file("cannot use the run directory", &path)(atomic::explain(e));
        fs::create_dir_all(&path).map_err(fail)?;
        let lock = lock(&path)?;
        let mut this = Self {
            path: path.clone(),
            _lock: lock,
            known_good: BTreeSet::new(),
            cleaned: Vec::new(),
        };
        this.clean()?;
        Ok(this)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn clean(&mut self) -> Result<()> {
        let checkpoints = self.path.join(CHECKPOINTS);
        self.cleaned = atomic::remove_leftovers(&checkpoints, true)?;
        self.cleaned.extend(atomic::remove_leftovers(&self.path, false)?);
        // A kill while a checkpoint was being replaced leaves the old one aside.
        for entry in fs::read_dir(&checkpoints).into_iter().flatten().flatten() {
            let aside = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(name) = name.strip_prefix(".superseded-") else { continue };
            let target = checkpoints.join(name);
            if target.exists() {
                atomic::remove_any(&aside)?;
                self.cleaned.push(aside);
            } else {
                fs::rename(&aside, &target).map_err(Error::file("cannot restore", &target))?;
            }
        }
        Ok(())
    }

    /// Writes the checkpoint of `pipeline`'s training step, whole or not at all.
    ///
    /// # Errors
    /// The pipeline has no training state, or the files cannot be written.
    pub fn save(&mut self, pipeline: &Pipeline) -> Result<PathBuf> {
        let Some(state) = &pipeline.training else {
            return Err(Error::checkpoint(&self.path, "a checkpoint needs a training state"));
        };
        let step = state.progress.step;
        let folder = self.path.join(CHECKPOINTS);
        if !folder.exists() {
            let fail = |e| Error::file("cannot write", &folder)(atomic::explain(e));
            fs::create_dir(&folder).map_err(fail)?;
            atomic::sync_folder(&self.path)?;
        }
        let path = folder.join(format!("step-{step}"));
        diffusers::save_pipeline(&path, pipeline)?;
        self.known_good.insert(step);
        Ok(path)
    }

    /// [`newest_valid`] of this run.
    pub fn newest_valid(&mut self) -> Result<Search> {
        let search = newest_valid(&self.path)?;
        self.known_good.extend(search.found.iter().map(|f| f.step));
        Ok(search)
    }

    /// Removes all checkpoints older than the newest `keep` valid ones and
    /// returns what was removed. The newest valid one always stays; damaged
    /// ones count for nothing, so that they never push a good one out.
    pub fn prune(&mut self, keep: usize) -> Result<Vec<PathBuf>> {
        let mut good = 0;
        let mut removed = Vec::new();
        for (step, path) in list(&self.path)? {
            if good >= keep.max(1) {
                atomic::remove_any(&path)?;
                self.known_good.remove(&step);
                removed.push(path);
            } else if self.known_good.contains(&step) || verify(&path).is_ok() {
                self.known_good.insert(step);
                good += 1;
            }
        }
        Ok(removed)
    }
}

/// Takes the lock of a run and writes into it who holds it.
fn lock(run: &Path) -> Result<File> {
    let path = run.join(LOCK);
    let fail = |e| Error::file("cannot lock", &path)(atomic::explain(e));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // On some systems a locked file cannot be read; then nobody is named.
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process",
                name => name,
            };
            return Err(Error::content(
                run,
                format!("{holder} is writing in this run; wait for it, or choose another --out"),
            ));
        }
        Err(TryLockError::Error(e)) => return Err(fail(e)),
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let at = if host.trim().is_empty() { String::new() } else { format!(" on {}", host.trim()) };
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "process {}{at}", std::process::id()))
        .map_err(fail)?;
    Ok(file)
}
