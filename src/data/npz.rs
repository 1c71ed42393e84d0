//! NumPy archives: `images` (or `x`, `x_train`, `data`, `arr_0`) and, if there,
//! `labels` (or `y`, `y_train`, `arr_1`).
//!
//! Images are `[n, h, w, c]`, `[n, c, h, w]` or `[n, h, w]` with 1 to 4
//! channels. Bytes and other integers are taken as 0 to 255. Floats are stored
//! to 8 bits: those with a negative value are read as [-1, 1], those up to 1 as
//! [0, 1], all others as [0, 255].

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use npyz::{DType, Endianness, NpyFile, TypeChar};
use zip::ZipArchive;

use super::Raw;
use crate::{Error, Result};

const IMAGES: [&str; 5] = ["images", "x", "x_train", "data", "arr_0"];
const LABELS: [&str; 4] = ["labels", "y", "y_train", "arr_1"];

pub(super) fn read(path: &Path) -> Result<Raw> {
    let file = File::open(path).map_err(Error::file("cannot read", path))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
        Error::content(path, format!("is not an .npz archive ({error}); write it with numpy.savez"))
    })?;
    let Some(images) = Array::read(path, &mut archive, &IMAGES)? else {
        let names: Vec<&str> = archive.file_names().collect();
        return Err(Error::content(
            path,
            format!(
                "holds no array called {}; it holds {}; write it with numpy.savez(file, \
                 images=..., labels=...)",
                IMAGES.join(", "),
                if names.is_empty() { "nothing".into() } else { names.join(", ") }
            ),
        ));
    };
    let (shape, axes) = images.image_axes(path)?;
    let pixels = images.image_bytes(path, shape, axes)?;
    let labels = match Array::read(path, &mut archive, &LABELS)? {
        None => None,
        Some(labels) => Some(labels.labels(path, shape[0])?),
    };
    Ok(Raw { pixels, shape, labels, classes: Vec::new(), levels: 256 })
}

/// The array `name` `[n, d]` of an archive, as f32, and its shape.
///
/// # Errors
/// The file or the array is damaged, absent or of another shape.
pub fn read_matrix(path: &Path, name: &'static str) -> Result<(Vec<f32>, [usize; 2])> {
    let file = File::open(path).map_err(Error::file("cannot read", path))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
        Error::content(path, format!("is not an .npz archive ({error}); write it with numpy.savez"))
    })?;
    let wrong = |problem: String| Error::content(path, format!("array `{name}` {problem}"));
    let array = Array::read(path, &mut archive, &[name])?
        .ok_or_else(|| wrong("is not in it; write it with numpy.savez".into()))?;
    let &[n, d] = array.shape.as_slice() else {
        return Err(wrong(format!("has shape {:?}; [n, d] is needed", array.shape)));
    };
    let at = |i: usize| (i / d) * array.strides[0] + (i % d) * array.strides[1];
    Ok(((0..n * d).map(|i| array.value(at(i)) as f32).collect(), [n, d]))
}

/// One array of the archive, its elements still as they are stored.
struct Array {
    name: &'static str,
    shape: Vec<usize>,
    /// Elements from one index of an axis to the next.
    strides: Vec<usize>,
    kind: Kind,
    big_endian: bool,
    bytes: Vec<u8>,
}

/// Type of an element.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F16,
    F32,
    F64,
}

impl Kind {
    fn of(dtype: &DType) -> Option<(Kind, bool)> {
        let DType::Plain(plain) = dtype else { return None };
        let kind = match (plain.type_char(), plain.size_field()) {
            (TypeChar::Uint | TypeChar::Bool, 1) => Kind::U8,
            (TypeChar::Uint, 2) => Kind::U16,
            (TypeChar::Uint, 4) => Kind::U32,
            (TypeChar::Uint, 8) => Kind::U64,
            (TypeChar::Int, 1) => Kind::I8,
            (TypeChar::Int, 2) => Kind::I16,
            (TypeChar::Int, 4) => Kind::I32,
            (TypeChar::Int, 8) => Kind::I64,
            (TypeChar::Float, 2) => Kind::F16,
            (TypeChar::Float, 4) => Kind::F32,
            (TypeChar::Float, 8) => Kind::F64,
            _ => return None,
        };
        Some((kind, plain.endianness() == Endianness::Big))
    }

    fn bytes(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 => 1,
            Kind::U16 | Kind::I16 | Kind::F16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 => 8,
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Kind::F16 | Kind::F32 | Kind::F64)
    }

    /// The value of little-endian bytes, zero past the type's own.
    fn value(self, b: [u8; 8]) -> f64 {
        let [b0, b1, b2, b3, ..] = b;
        match self {
            Kind::U8 => f64::from(b0),
            Kind::U16 => f64::from(u16::from_le_bytes([b0, b1])),
            Kind::U32 => f64::from(u32::from_le_bytes([b0, b1, b2, b3])),
            Kind::U64 => u64::from_le_bytes(b) as f64,
            Kind::I8 => f64::from(b0 as i8),
            Kind::I16 => f64::from(i16::from_le_bytes([b0, b1])),
            Kind::I32 => f64::from(i32::from_le_bytes([b0, b1, b2, b3])),
            Kind::I64 => i64::from_le_bytes(b) as f64,
            Kind::F16 => half::f16::from_le_bytes([b0, b1]).to_f64(),
            Kind::F32 => f64::from(f32::from_le_bytes([b0, b1, b2, b3])),
            Kind::F64 => f64::from_le_bytes(b),
        }
    }
}

impl Array {
    /// The first of `names` that the archive holds.
    fn read(
        path: &Path,
        archive: &mut ZipArchive<BufReader<File>>,
        names: &[&'static str],
    ) -> Result<Option<Array>> {
        let entry = names
            .iter()
            .find_map(|&name| Some((name, archive.index_for_name(&format!("{name}.npy"))?)));
        let Some((name, index)) = entry else { return Ok(None) };
        let damaged = |error: &dyn std::fmt::Display| {
            Error::content(path, format!("array `{name}` is damaged ({error}); write it again"))
        };
        let entry = archive.by_index(index).map_err(|error| damaged(&error))?;
        let npy = NpyFile::new(entry).map_err(|error| damaged(&error))?;
        let (kind, big_endian) = Kind::of(&npy.dtype()).ok_or_else(|| {
            Error::content(
                path,
                format!(
                    "array `{name}` has type {}; integers and floats are read",
                    npy.dtype().descr()
                ),
            )
        })?;
        let shape: Vec<usize> = npy.shape().iter().map(|&len| len as usize).collect();
        let expected = shape
            .iter()
            .try_fold(kind.bytes(), |product, &len| product.checked_mul(len))
            .filter(|&bytes| bytes > 0 && (bytes as u64) < 1 << 40)
            .ok_or_else(|| {
                Error::content(path, format!("array `{name}` is empty: its shape is {shape:?}"))
            })?;
        let strides = npy.strides().iter().map(|&stride| stride as usize).collect();
        let mut bytes = Vec::new();
        // One byte past the last: only at its end is the entry's checksum compared.
        npy.into_inner()
            .take(expected as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| damaged(&error))?;
        if bytes.len() != expected {
            return Err(damaged(&format!(
                "its shape {shape:?} needs {expected} bytes, {} are there",
                match bytes.len() > expected {
                    true => "more".into(),
                    false => bytes.len().to_string(),
                }
            )));
        }
        Ok(Some(Array { name, shape, strides, kind, big_endian, bytes }))
    }

    fn value(&self, index: usize) -> f64 {
        let len = self.kind.bytes();
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&self.bytes[index * len..][..len]);
        if self.big_endian {
            bytes[..len].reverse();
        }
        self.kind.value(bytes)
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        (0..self.bytes.len() / self.kind.bytes()).map(|index| self.value(index))
    }

    /// Shape as `[n, h, w, c]` and the array's axis of each; an axis past the
    /// last is absent.
    fn image_axes(&self, path: &Path) -> Result<([usize; 4], [usize; 4])> {
        let axes = match *self.shape.as_slice() {
            [_, _, _] => [0, 1, 2, 3],
            [_, _, _, 1..=4] => [0, 1, 2, 3],
            [_, 1..=4, _, _] => [0, 2, 3, 1],
            _ => {
                return Err(Error::content(
                    path,
                    format!(
                        "array `{}` has shape {:?}; images are [n, h, w, c], [n, c, h, w] or \
                         [n, h, w] with 1 to 4 channels; reshape it",
                        self.name, self.shape
                    ),
                ));
            }
        };
        Ok((axes.map(|axis| self.shape.get(axis).copied().unwrap_or(1)), axes))
    }

    fn image_bytes(&self, path: &Path, shape: [usize; 4], axes: [usize; 4]) -> Result<Vec<u8>> {
        let (least, most) = self
            .values()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let finite = !self.kind.is_float() || self.values().all(f64::is_finite);
        // byte = scale value + shift; the ranges allow for rounding at their ends.
        let (scale, shift) = match (self.kind.is_float(), least, most) {
            (true, -1.001..-1e-3, ..=1.001) => (127.5, 127.5),
            (true, -1e-3.., ..=1.001) => (255.0, 0.0),
            (_, 0.0.., ..=255.0) => (1.0, 0.0),
            _ => (f64::NAN, 0.0),
        };
        if !finite || scale.is_nan() {
            return Err(Error::content(
                path,
                format!(
                    "array `{}` has values from {least} to {most}{}; images are integers in 0 to \
                     255 or floats in [-1, 1], [0, 1] or [0, 255]",
                    self.name,
                    if finite { "" } else { " and values that are not finite" }
                ),
            ));
        }
        let stride = axes.map(|axis| self.strides.get(axis).copied().unwrap_or(0));
        let mut pixels = Vec::with_capacity(shape.iter().product());
        for n in 0..shape[0] {
            for y in 0..shape[1] {
                for x in 0..shape[2] {
                    for c in 0..shape[3] {
                        let index = n * stride[0] + y * stride[1] + x * stride[2] + c * stride[3];
                        pixels.push((self.value(index) * scale + shift).round() as u8);
                    }
                }
            }
        }
        Ok(pixels)
    }

    fn labels(&self, path: &Path, images: usize) -> Result<Vec<u32>> {
        let wrong =
            |problem: String| Err(Error::content(path, format!("array `{}` {problem}", self.name)));
        let count: usize = self.shape.iter().product();
        if self.kind.is_float() {
            return wrong("holds floats; labels are integers".into());
        }
        if self.shape[0] != images || count != images {
            return wrong(format!(
                "has shape {:?} for {images} images; labels are one integer per image",
                self.shape
            ));
        }
        match self.values().find(|label| !(0.0..65536.0).contains(label)) {
            Some(label) => wrong(format!("holds label {label}; labels lie in 0 to 65535")),
            None => Ok(self.values().map(|label| label as u32).collect()),
        }
    }
}
