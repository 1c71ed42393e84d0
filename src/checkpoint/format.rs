//! Safetensors files: the library reads and validates the header, this module
//! maps the file, adds a checksum to those we write and says in words what is
//! wrong with a damaged one.
//!
//! The header is written here and not by the library, whose `__metadata__`
//! comes out of a hash map in a different order each time: the same tensors
//! give the same bytes. The checksum is CRC-32 over the metadata, every
//! tensor's name, type and shape, and the data; it stands in `__metadata__`
//! under [`CHECKSUM_KEY`]. Files of others carry none and are checked by their
//! structure alone.

// Mapping a file needs it; see `Mapping::open`.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Crc;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
pub use safetensors::{Dtype, View};
use safetensors::{SafeTensorError, SafeTensors};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::atomic;
use crate::error::{Error, Result};

/// Where a file of ours keeps its checksum, in `__metadata__`.
pub const CHECKSUM_KEY: &str = "langevin.crc32";

/// A whole file, mapped read-only.
pub(super) struct Mapping(Mmap);

impl Mapping {
    pub fn open(path: &Path) -> Result<Self> {
        let fail = Error::file("cannot read", path);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) => return Err(fail(e)),
        };
        match file.metadata() {
            Ok(m) if m.is_dir() => {
                return Err(Error::content(path, "is a folder; a file is expected here"));
            }
            Ok(m) if m.is_file() && m.len() == 0 => {
                return Err(Error::content(path, "the file is empty; fetch or write it again"));
            }
            Ok(_) => {}
            Err(e) => return Err(fail(e)),
        }
        // SAFETY: the bytes must not change while they are mapped. Every file
        // this program writes is replaced by a rename, which leaves a mapped
        // one as it is; another program that cuts a weights file while it is
        // being loaded ends this process (SIGBUS), as with any mapped file.
        unsafe { Mmap::map(&file) }.map(Mapping).map_err(fail)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// An open safetensors file whose header, and checksum if it has one, are right.
pub struct TensorFile {
    path: PathBuf,
    mapping: Mapping,
    /// First byte of the data.
    start: usize,
    header: Metadata,
}

/// One tensor's bytes as they stand in a file, little-endian.
pub struct Raw<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Axes.
    pub shape: &'a [usize],
    /// Elements, row-major.
    pub bytes: &'a [u8],
}

impl TensorFile {
    /// Maps and checks a file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mapping = Mapping::open(path)?;
        let (header_len, header) = SafeTensors::read_metadata(mapping.bytes())
            .map_err(|e| Error::content(path, diagnose(mapping.bytes(), &e)))?;
        let start = 8 + header_len;
        let this = Self { path: path.to_path_buf(), mapping, start, header };
        this.refuse_duplicates()?;
        this.verify_checksum()?;
        Ok(this)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names in the order of the data.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// One tensor.
    pub fn get(&self, name: &str) -> Option<Raw<'_>> {
        let info = self.header.info(name)?;
        let (from, to) = info.data_offsets;
        let bytes = &self.mapping.bytes()[self.start..][from..to];
        Some(Raw { dtype: info.dtype, shape: &info.shape, bytes })
    }

    /// The header's `__metadata__`.
    pub fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.header.metadata().as_ref()
    }

    /// The library's parser keeps the last of several equal keys, and two that
    /// describe the same bytes pass its checks.
    fn refuse_duplicates(&self) -> Result<()> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Option<String>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut seen = HashSet::new();
                let mut duplicate = None;
                while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    if seen.contains(&key) {
                        duplicate.get_or_insert(key);
                    } else {
                        seen.insert(key);
                    }
                }
                Ok(duplicate)
            }
        }
        let header = &self.mapping.bytes()[8..self.start];
        let duplicate = serde_json::Deserializer::from_slice(header).deserialize_map(Keys);
        match duplicate {
            Ok(None) => Ok(()),
            Ok(Some(key)) => Err(Error::content(
                &self.path,
                format!("the key `{key}` stands twice in the header; write the file again"),
            )),
            Err(e) => Err(Error::content(&self.path, format!("the header is damaged: {e}"))),
        }
    }

    fn verify_checksum(&self) -> Result<()> {
        let Some(metadata) = self.metadata() else { return Ok(()) };
        let Some(recorded) = metadata.get(CHECKSUM_KEY) else { return Ok(()) };
        let mut checksum = Checksum::new(metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        for name in self.names() {
            let raw = self.get(&name).expect("names come from the header");
            checksum.tensor(&name, raw.dtype, raw.shape);
            checksum.data(raw.bytes);
        }
        if *recorded == checksum.finish() {
            return Ok(());
        }
        Err(Error::content(
            &self.path,
            "the content does not match its checksum: the file was damaged after it was written; \
             use another copy or an older checkpoint",
        ))
    }
}

/// CRC-32 over everything a file of ours says.
struct Checksum(Crc);

impl Checksum {
    fn new<'a>(metadata: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let sorted: BTreeMap<_, _> = metadata.filter(|(k, _)| *k != CHECKSUM_KEY).collect();
        let mut crc = Crc::new();
        for (k, v) in sorted {
            crc.update(format!("{k}\0{v}\0").as_bytes());
        }
        Self(crc)
    }
    fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize]) {
        self.0.update(format!("{name}\0{dtype}\0{shape:?}\0").as_bytes());
    }
    fn data(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    fn finish(&self) -> String {
        format!("{:08x}", self.0.sum())
    }
}

/// CRC-32 of a whole file, as hexadecimal digits, and its length in bytes.
pub(super) fn file_checksum(path: &Path) -> Result<(u64, String)> {
    let length = std::fs::metadata(path).map_err(Error::file("cannot read", path))?.len();
    let mut crc = Crc::new();
    if length > 0 {
        crc.update(Mapping::open(path)?.bytes());
    }
    Ok((length, format!("{:08x}", crc.sum())))
}

/// Words for a header that the library refuses.
fn diagnose(bytes: &[u8], error: &SafeTensorError) -> String {
    if bytes.starts_with(b"version https://git-lfs") {
        return "this is a Git LFS pointer, not the weights; run `git lfs pull` in its repository"
            .into();
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return "this is a zip archive (PyTorch's format?), not safetensors; name it .bin".into();
    }
    if bytes.starts_with(b"<") {
        return "this is a web page, not safetensors; download the file itself".into();
    }
    let problem = match error {
        SafeTensorError::HeaderTooSmall => {
            format!("the file ends after {} bytes, inside the length of its header", bytes.len())
        }
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            let mut length = [0; 8];
            length.copy_from_slice(&bytes[..8]);
            format!(
                "the header claims {} bytes in a file of {}",
                u64::from_le_bytes(length),
                bytes.len()
            )
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            "the file is shorter or longer than its header says".into()
        }
        other => other.to_string(),
    };
    format!("{problem}: it is truncated, damaged or not safetensors; fetch or write it again")
}

/// Writes tensors as safetensors: by element size and name, as the library
/// orders them, with `metadata` and a checksum in the header. The file is
/// replaced whole. Each view's data is asked for twice.
pub fn write<V: View>(
    path: impl AsRef<Path>,
    mut tensors: Vec<(String, V)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    tensors.sort_by(|(a, x), (b, y)| y.dtype().cmp(&x.dtype()).then_with(|| a.cmp(b)));
    let mut checksum = Checksum::new(metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let mut infos = Vec::with_capacity(tensors.len());
    let mut offset = 0;
    for (name, view) in &tensors {
        let end = offset + view.data_len();
        infos.push((
            name.clone(),
            TensorInfo {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                data_offsets: (offset, end),
            },
        ));
        checksum.tensor(name, view.dtype(), view.shape());
        checksum.data(&view.data());
        offset = end;
    }
    let tensors_header = Metadata::new(None, infos)
        .map_err(|e| Error::content(path, format!("cannot be written: {e}")))?;
    let mut metadata = metadata.clone();
    metadata.insert(CHECKSUM_KEY.into(), checksum.finish());

    #[derive(serde::Serialize)]
    struct Header<'a> {
        #[serde(rename = "__metadata__")]
        metadata: &'a BTreeMap<String, String>,
        #[serde(flatten)]
        tensors: &'a Metadata,
    }
    let mut header = serde_json::to_vec(&Header { metadata: &metadata, tensors: &tensors_header })
        .expect("strings and numbers are always JSON");
    header.resize(header.len().next_multiple_of(8), b' ');

    atomic::write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        tensors.iter().try_for_each(|(_, view)| file.write_all(&view.data()))
    })
}

/// Element types of floating point that are read as f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Float {
    /// Half precision.
    F16,
    /// Brain float.
    BF16,
    /// Single precision.
    F32,
    /// Double precision, rounded to nearest.
    F64,
}

impl Float {
    /// The type behind a safetensors type, if it is one of these.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F16 => Some(Float::F16),
            Dtype::BF16 => Some(Float::BF16),
            Dtype::F32 => Some(Float::F32),
            Dtype::F64 => Some(Float::F64),
            _ => None,
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Float::F16 | Float::BF16 => 2,
            Float::F32 => 4,
            Float::F64 => 8,
        }
    }

    /// Reads little-endian elements.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|&chunk| f(chunk)).collect()
        }
        match self {
            Float::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Float::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Float::F32 => each(bytes, f32::from_le_bytes),
            Float::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        }
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Float::F16 => "f16",
            Float::BF16 => "bf16",
            Float::F32 => "f32",
            Float::F64 => "f64",
        })
    }
}

/// f32 values as little-endian bytes.
pub(super) fn encode_f32(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * 4];
    for (b, v) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *b = v.to_le_bytes();
    }
    bytes
}
