//! A network's weights, from files to the parameter arena and back.
//!
//! Read are safetensors (f32, f16, bf16, f64), alone or in shards, and
//! PyTorch's `.bin`. Written is f32 safetensors in the checkpoint's own names
//! and layout, so that import, export and import give the same bits.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::format::{self, Dtype, Float, TensorFile, View};
use super::torch::TorchFile;
use crate::error::{Error, Result};
use crate::plan::{Parameter, Parameters};

/// The name diffusers gives a network's weights.
pub const FILE_NAME: &str = "diffusion_pytorch_model.safetensors";

/// Names under which a folder's weights are looked for, best first.
const CANDIDATES: [&str; 14] = [
    FILE_NAME,
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.bf16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.fp16.bin",
    "model.bin",
];

enum Part {
    Safetensors(TensorFile),
    Torch(TorchFile),
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if matches!(extension, "bin" | "pt" | "pth" | "ckpt") {
            Ok(Part::Torch(TorchFile::open(path)?))
        } else {
            Ok(Part::Safetensors(TensorFile::open(path)?))
        }
    }

    /// Names and shapes, in the file's order.
    fn list(&self) -> Vec<(String, Vec<usize>)> {
        match self {
            Part::Safetensors(file) => file
                .names()
                .into_iter()
                .map(|name| {
                    let shape = file.get(&name).expect("names come from the header").shape.to_vec();
                    (name, shape)
                })
                .collect(),
            Part::Torch(file) => {
                file.tensors().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
            }
        }
    }
}

struct Entry {
    part: usize,
    /// Position in the part's own list.
    position: usize,
    shape: Vec<usize>,
}

/// Open weights: one file or several shards.
pub struct Weights {
    path: PathBuf,
    parts: Vec<Part>,
    entries: BTreeMap<String, Entry>,
}

/// What loading did beyond copying.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The file, or the index of the shards.
    pub path: PathBuf,
    /// Tensors loaded.
    pub tensors: usize,
    /// Files read (more than one for shards).
    pub files: usize,
    /// Legacy names and what they are called now.
    pub renamed: Vec<(String, String)>,
    /// Tensors that lost axes of length 1, by their present name.
    pub squeezed: Vec<String>,
    /// Tensors per element type on disk.
    pub types: BTreeMap<Float, usize>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} tensors from `{}`", self.tensors, self.path.display())?;
        if self.files > 1 {
            write!(f, " in {} files", self.files)?;
        }
        for (float, count) in self.types.iter().filter(|(float, _)| **float != Float::F32) {
            write!(f, "; {count} converted from {float}")?;
        }
        if let Some((from, to)) = self.renamed.first() {
            write!(f, "; {} renamed (`{from}` to `{to}`)", self.renamed.len())?;
        }
        if let Some(name) = self.squeezed.first() {
            write!(f, "; {} squeezed (`{name}`)", self.squeezed.len())?;
        }
        Ok(())
    }
}

/// Finds the weights in a folder, or takes a file as it is.
pub fn locate(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if let Some(found) = CANDIDATES.iter().map(|name| path.join(name)).find(|p| p.is_file()) {
        return Ok(found);
    }
    let listing = std::fs::read_dir(path).map_err(Error::file("cannot list", path))?;
    let mut others: Vec<PathBuf> = listing
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|p| p.is_file() && p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    match (others.pop(), others.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(Error::checkpoint(
            path,
            format!("holds several safetensors files and none is named {FILE_NAME}; give one"),
        )),
        (None, _) => Err(Error::checkpoint(
            path,
            format!("holds no weights; looked for {}", CANDIDATES.join(", ")),
        )),
    }
}

impl Weights {
    /// Opens a weights file, the index of a sharded one, or the folder of either.
    ///
    /// # Errors
    /// Nothing is there, or a file is damaged (see [`format`] and the checksum
    /// in files of our own).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = locate(path.as_ref())?;
        let files = if path.extension().is_some_and(|e| e == "json") {
            shards(&path)?
        } else {
            vec![path.clone()]
        };
        let parts = files.iter().map(|file| Part::open(file)).collect::<Result<Vec<_>>>()?;
        let mut entries = BTreeMap::new();
        for (part, content) in parts.iter().enumerate() {
            for (position, (name, shape)) in content.list().into_iter().enumerate() {
                if entries.insert(name.clone(), Entry { part, position, shape }).is_some() {
                    return Err(Error::checkpoint(
                        &path,
                        format!("`{name}` stands twice; write the file again"),
                    ));
                }
            }
        }
        Ok(Self { path, parts, entries })
    }

    /// The file, or the index of the shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes as on disk, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.entries.iter().map(|(name, e)| (name.as_str(), e.shape.as_slice()))
    }

    fn read(&self, name: &str, entry: &Entry) -> Result<(Float, Vec<f32>)> {
        let (float, values) = match &self.parts[entry.part] {
            Part::Torch(file) => file.read(entry.position)?,
            Part::Safetensors(file) => {
                let raw = file.get(name).expect("listed when opened");
                let float = Float::of(raw.dtype).ok_or_else(|| {
                    Error::content(
                        file.path(),
                        format!(
                            "tensor `{name}` is {}; f32, f16, bf16 and f64 are read",
                            raw.dtype
                        ),
                    )
                })?;
                (float, float.decode(raw.bytes))
            }
        };
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::checkpoint(
                &self.path,
                format!(
                    "tensor `{name}` holds {} at element {i}: the weights are damaged or the \
                     training diverged; use an older checkpoint",
                    values[i]
                ),
            ));
        }
        Ok((float, values))
    }

    /// Copies the weights into an arena laid out by `parameters`; padding
    /// between weights becomes 0. After an error the arena's content is
    /// unspecified.
    ///
    /// # Errors
    /// Names missing, left over or of another shape (all in one error), or a
    /// value that is not finite.
    pub fn load_into(&self, parameters: &Parameters, arena: &mut [f32]) -> Result<Report> {
        check_arena("load_into", parameters, arena.len())?;
        let mut report =
            Report { path: self.path.clone(), files: self.parts.len(), ..Default::default() };
        let matched = self.match_names(parameters, &mut report)?;
        arena.fill(0.0);
        for (parameter, name) in parameters.entries.iter().zip(matched) {
            let (float, values) = self.read(name, &self.entries[name])?;
            parameter.from_disk(&values, &mut arena[parameter.offset..][..parameter.len()]);
            *report.types.entry(float).or_default() += 1;
            report.tensors += 1;
        }
        Ok(report)
    }

    /// For each parameter the name on disk, all checks but the values' done.
    fn match_names<'a>(
        &'a self,
        parameters: &Parameters,
        report: &mut Report,
    ) -> Result<Vec<&'a str>> {
        let known: HashMap<&str, usize> =
            parameters.entries.iter().enumerate().map(|(i, p)| (p.name.as_str(), i)).collect();
        let mut found: Vec<Option<&str>> = vec![None; parameters.entries.len()];
        let (mut extra, mut misshapen, mut doubled) = (Vec::new(), Vec::new(), Vec::new());
        for (name, entry) in &self.entries {
            // Old files hold the Fourier frequencies under both names.
            if name == "time_proj.W" && self.entries.contains_key("time_proj.weight") {
                continue;
            }
            let current = match known.contains_key(name.as_str()) {
                true => Cow::Borrowed(name.as_str()),
                false => match current_name(name) {
                    Some(current) if known.contains_key(current.as_str()) => current.into(),
                    _ => {
                        extra.push(format!("`{name}`"));
                        continue;
                    }
                },
            };
            let i = known[current.as_ref()];
            let parameter = &parameters.entries[i];
            if entry.shape != parameter.disk_shape {
                if !is_squeezed(&entry.shape, &parameter.disk_shape) {
                    misshapen.push(format!(
                        "`{name}` is {:?} in the file and {:?} in the network",
                        entry.shape, parameter.disk_shape
                    ));
                    found[i] = Some(name);
                    continue;
                }
                report.squeezed.push(parameter.name.clone());
            }
            if *current != **name {
                report.renamed.push((name.clone(), current.clone().into_owned()));
            }
            if let Some(other) = found[i].replace(name) {
                doubled.push(format!("`{other}` and `{name}` both mean `{current}`"));
            }
        }
        let missing: Vec<String> = parameters
            .entries
            .iter()
            .zip(&found)
            .filter(|(_, f)| f.is_none())
            .map(|(p, _)| format!("`{}`", p.name))
            .collect();
        let mut problems = Vec::new();
        for (what, list) in [
            ("missing", &missing),
            ("not in the network", &extra),
            ("of another shape", &misshapen),
            ("given twice", &doubled),
        ] {
            if !list.is_empty() {
                let more = if list.len() > 3 { ", ..." } else { "" };
                let first = list[..list.len().min(3)].join(", ");
                problems.push(format!("{} {what}: {first}{more}", list.len()));
            }
        }
        if problems.is_empty() {
            return Ok(found.into_iter().flatten().collect());
        }
        Err(Error::checkpoint(
            &self.path,
            format!(
                "the weights do not fit the network. Tensors {}. The configuration must be the \
                 one these weights were saved with (config.json beside them)",
                problems.join("; ")
            ),
        ))
    }
}

/// The present name of a tensor that older diffusers called otherwise.
fn current_name(name: &str) -> Option<String> {
    const RENAMED: [(&str, &str); 4] =
        [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    if name == "time_proj.W" {
        return Some("time_proj.weight".into());
    }
    let (stem, kind) = name.rsplit_once('.')?;
    let (stem, last) = stem.rsplit_once('.')?;
    let (_, present) = RENAMED.iter().find(|(legacy, _)| *legacy == last)?;
    stem.contains("attentions").then(|| format!("{stem}.{present}.{kind}"))
}

/// Whether `found` is `wanted` with axes of length 1 appended.
fn is_squeezed(found: &[usize], wanted: &[usize]) -> bool {
    found.strip_prefix(wanted).is_some_and(|rest| rest.iter().all(|&n| n == 1))
}

pub(super) fn check_arena(op: &'static str, parameters: &Parameters, len: usize) -> Result<()> {
    if len == parameters.arena_len() {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        tensor: "arena".into(),
        expected: format!("[{}]", parameters.arena_len()),
        found: vec![len],
    })
}

/// The files an index names, in the order of first mention by name.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let json = super::diffusers::read_json(index)?;
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| {
        Error::checkpoint(index, "has no `weight_map`; it is not the index of sharded weights")
    })?;
    let folder = super::atomic::parent_of(index);
    let mut names: Vec<&str> = Vec::new();
    for (tensor, file) in map {
        let name = file.as_str().unwrap_or_default();
        if Path::new(name).file_name() != Some(name.as_ref()) {
            return Err(Error::checkpoint(
                index,
                format!("`{tensor}` should be in a file beside the index, not in `{file}`"),
            ));
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.sort_unstable();
    names
        .into_iter()
        .map(|name| {
            let file = folder.join(name);
            if file.is_file() {
                return Ok(file);
            }
            Err(Error::checkpoint(index, format!("the shard `{name}` is missing beside it")))
        })
        .collect()
}

/// One weight of an arena, as it stands on disk.
pub(super) struct ParameterView<'a> {
    pub parameter: &'a Parameter,
    pub arena: &'a [f32],
}

impl View for ParameterView<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.parameter.disk_shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let p = self.parameter;
        let mut disk = vec![0.0; p.len()];
        p.to_disk(&self.arena[p.offset..][..p.len()], &mut disk);
        format::encode_f32(&disk).into()
    }
    fn data_len(&self) -> usize {
        self.parameter.len() * 4
    }
}

/// Writes an arena as f32 safetensors that diffusers loads. `metadata` goes
/// into the header beside `format: pt` and the checksum.
pub fn save(
    path: impl AsRef<Path>,
    parameters: &Parameters,
    arena: &[f32],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    check_arena("save", parameters, arena.len())?;
    let views = parameters
        .entries
        .iter()
        .map(|parameter| (parameter.name.clone(), ParameterView { parameter, arena }))
        .collect();
    let mut metadata = metadata.clone();
    metadata.insert("format".into(), "pt".into());
    format::write(path, views, &metadata)
}
