//! PyTorch's own weight files (`.bin`, `.pt` since 1.6): a zip archive of a
//! pickle and one uncompressed file per storage.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use zip::{CompressionMethod, ZipArchive};

use super::format::{Float, Mapping};
use super::pickle::{self, PickledTensor};
use crate::error::{Error, Result};

/// An open file; every storage's CRC-32 in the archive was checked.
pub struct TorchFile {
    path: PathBuf,
    mapping: Mapping,
    /// Bytes of each storage in the file, by its key.
    storages: HashMap<String, Range<usize>>,
    tensors: Vec<(String, PickledTensor)>,
}

impl TorchFile {
    pub fn open(path: &Path) -> Result<Self> {
        let mapping = Mapping::open(path)?;
        let bad = |problem: String| Error::content(path, problem);
        let bytes = mapping.bytes();
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(bad(
                "this is a Git LFS pointer, not the weights; run `git lfs pull`".into()
            ));
        }
        if !bytes.starts_with(b"PK") {
            return Err(bad("this is not PyTorch's zip format (files older than PyTorch 1.6 are \
                            not read); load it in Python and save it as safetensors"
                .into()));
        }
        let damaged = |e: &dyn std::fmt::Display| {
            bad(format!("the archive is truncated or damaged ({e}); fetch it again"))
        };
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| damaged(&e))?;
        let mut storages = HashMap::new();
        let mut pickled = None;
        for i in 0..archive.len() {
            let mut entry = archive.by_index(i).map_err(|e| damaged(&e))?;
            let name = entry.name().to_string();
            let inner = name.split_once('/').map_or("", |(_, rest)| rest);
            // PyTorch never compresses; its storages are read in place.
            if entry.compression() != CompressionMethod::Stored {
                return Err(bad(format!("`{name}` is compressed: not written by PyTorch")));
            }
            let (start, size) = (entry.data_start(), entry.size());
            let mut content = Vec::new();
            if inner == "data.pkl" || inner == "byteorder" {
                entry.read_to_end(&mut content).map_err(|e| damaged(&e))?;
            } else {
                // Reading to the end is what checks the CRC.
                std::io::copy(&mut entry, &mut std::io::sink()).map_err(|e| damaged(&e))?;
            }
            match inner {
                "data.pkl" => pickled = Some(content),
                "byteorder" if content != b"little" => {
                    return Err(bad("its numbers are big-endian; save it as safetensors".into()));
                }
                _ => {
                    if let Some(key) = inner.strip_prefix("data/") {
                        let range = start
                            .and_then(|start| {
                                Some(start as usize..start.checked_add(size)? as usize)
                            })
                            .filter(|range| bytes.get(range.clone()).is_some())
                            .ok_or_else(|| damaged(&format!("`{name}` ends after the file")))?;
                        storages.insert(key.to_string(), range);
                    }
                }
            }
        }
        let pickled = pickled
            .ok_or_else(|| bad("the archive holds no data.pkl: not PyTorch weights".into()))?;
        let tensors = pickle::read_state_dict(&pickled).map_err(bad)?;
        Ok(Self { path: path.to_path_buf(), mapping, storages, tensors })
    }

    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, t)| (name.as_str(), t.shape.as_slice()))
    }

    /// Type and values of the `i`-th tensor.
    pub fn read(&self, i: usize) -> Result<(Float, Vec<f32>)> {
        let (name, t) = &self.tensors[i];
        let bad = |problem: &str| Error::content(&self.path, format!("tensor `{name}`: {problem}"));
        let float = match &*t.storage {
            "FloatStorage" => Float::F32,
            "HalfStorage" => Float::F16,
            "BFloat16Storage" => Float::BF16,
            "DoubleStorage" => Float::F64,
            other => return Err(bad(&format!("{other} holds no floating-point weights"))),
        };
        let range = self.storages.get(&*t.key).ok_or_else(|| bad("its storage is missing"))?;
        let storage = &self.mapping.bytes()[range.clone()];
        let size = float.bytes();

        let overflow = || bad("its shape does not fit its storage");
        let len = t.shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s)).ok_or_else(overflow)?;
        if len == 0 {
            return Ok((float, Vec::new()));
        }
        let last = t
            .shape
            .iter()
            .zip(&t.stride)
            .try_fold(t.offset, |at, (&s, &stride)| at.checked_add((s - 1).checked_mul(stride)?))
            .ok_or_else(overflow)?;
        // A stride of 0 repeats elements: the count, too, must fit the storage.
        if last >= storage.len() / size || len > storage.len() / size {
            return Err(overflow());
        }
        if is_contiguous(&t.shape, &t.stride) {
            return Ok((float, float.decode(&storage[t.offset * size..][..len * size])));
        }
        let values = float.decode(storage);
        let mut index = vec![0; t.shape.len()];
        let mut out = Vec::with_capacity(len);
        for _ in 0..len {
            let at = index.iter().zip(&t.stride).map(|(i, s)| i * s).sum::<usize>() + t.offset;
            out.push(values[at]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < t.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok((float, out))
    }
}

fn is_contiguous(shape: &[usize], stride: &[usize]) -> bool {
    let mut expected = 1;
    for (&n, &s) in shape.iter().zip(stride).rev() {
        if n != 1 && s != expected {
            return false;
        }
        expected *= n;
    }
    true
}
