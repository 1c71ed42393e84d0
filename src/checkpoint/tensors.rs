//! Named tensors in files, for the command line (`predict`, `--noise`,
//! `--tensors`): safetensors, images f32 NCHW.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::format::{self, Dtype, Float, Raw, TensorFile, View};
use crate::error::{Error, Result};

/// Values of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Floating point; f16, bf16 and f64 are converted when read.
    F32(Vec<f32>),
    /// Whole numbers; narrower types are widened when read.
    I64(Vec<i64>),
}

/// A tensor with its axes, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// Elements.
    pub values: Values,
}

impl Tensor {
    /// An f32 tensor.
    ///
    /// # Errors
    /// The number of values is not the product of the axes.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Result<Self> {
        check_len("tensor", shape, values.len())?;
        Ok(Self { shape: shape.to_vec(), values: Values::F32(values) })
    }

    /// An i64 tensor.
    ///
    /// # Errors
    /// The number of values is not the product of the axes.
    pub fn i64(shape: &[usize], values: Vec<i64>) -> Result<Self> {
        check_len("tensor", shape, values.len())?;
        Ok(Self { shape: shape.to_vec(), values: Values::I64(values) })
    }
}

fn check_len(op: &'static str, shape: &[usize], len: usize) -> Result<()> {
    if shape.iter().product::<usize>() == len {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        tensor: "values".into(),
        expected: format!("{shape:?}"),
        found: vec![len],
    })
}

/// The tensors of one file, by name.
#[derive(Clone, Debug)]
pub struct Tensors {
    path: PathBuf,
    entries: BTreeMap<String, Tensor>,
}

impl Tensors {
    /// Names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// One tensor, if the file has it.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.get(name)
    }

    /// One tensor with the given number of axes; `axes` names them in the error,
    /// e.g. `["n", "c", "h", "w"]`.
    fn expect(&self, name: &str, axes: &[&str]) -> Result<&Tensor> {
        let tensor = self.get(name).ok_or_else(|| {
            let found: Vec<_> = self.names().collect();
            Error::content(
                &self.path,
                format!("has no tensor `{name}` [{}]; it holds {found:?}", axes.join(", ")),
            )
        })?;
        if tensor.shape.len() == axes.len() {
            return Ok(tensor);
        }
        Err(self
            .wrong(name, &format!("has shape {:?}, expected [{}]", tensor.shape, axes.join(", "))))
    }

    fn wrong(&self, name: &str, problem: &str) -> Error {
        Error::content(&self.path, format!("tensor `{name}` {problem}"))
    }

    /// An f32 tensor whose axes are `axes`, and its shape. Whole numbers are
    /// refused: an image in i64 is almost surely one in 0..255.
    pub fn floats<const N: usize>(
        &self,
        name: &str,
        axes: [&str; N],
    ) -> Result<([usize; N], &[f32])> {
        let tensor = self.expect(name, &axes)?;
        let Values::F32(values) = &tensor.values else {
            return Err(self.wrong(name, "holds whole numbers; f32 is expected"));
        };
        Ok((shape_of(tensor), values))
    }

    /// A tensor of times, f32 or i64, as f32.
    pub fn times(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.expect(name, &["n"])?;
        match &tensor.values {
            Values::F32(values) => Ok(values.clone()),
            Values::I64(values) => values
                .iter()
                .map(|&v| {
                    if v.unsigned_abs() <= 1 << 24 {
                        Ok(v as f32)
                    } else {
                        Err(self.wrong(name, &format!("holds {v}, which f32 cannot hold exactly")))
                    }
                })
                .collect(),
        }
    }

    /// An i64 tensor of one axis (classes).
    pub fn labels(&self, name: &str) -> Result<&[i64]> {
        let tensor = self.expect(name, &["n"])?;
        match &tensor.values {
            Values::I64(values) => Ok(values),
            Values::F32(_) => Err(self.wrong(name, "holds f32; i64 is expected")),
        }
    }
}

fn shape_of<const N: usize>(tensor: &Tensor) -> [usize; N] {
    tensor.shape.as_slice().try_into().expect("the number of axes was checked")
}

/// Reads every tensor of a file.
///
/// # Errors
/// The file is damaged, or a tensor is neither floating point (f16, bf16, f32,
/// f64) nor a whole number (i64, i32, u8).
pub fn read(path: impl AsRef<Path>) -> Result<Tensors> {
    let path = path.as_ref();
    let file = TensorFile::open(path)?;
    let mut entries = BTreeMap::new();
    for name in file.names() {
        let raw = file.get(&name).expect("names come from the header");
        let values = decode(&raw).ok_or_else(|| {
            Error::content(
                path,
                format!(
                    "tensor `{name}` is {}; f32, f16, bf16, f64, i64 and i32 are read",
                    raw.dtype
                ),
            )
        })?;
        entries.insert(name, Tensor { shape: raw.shape.to_vec(), values });
    }
    Ok(Tensors { path: path.to_path_buf(), entries })
}

fn decode(raw: &Raw) -> Option<Values> {
    if let Some(float) = Float::of(raw.dtype) {
        return Some(Values::F32(float.decode(raw.bytes)));
    }
    let whole = match raw.dtype {
        Dtype::I64 => raw.bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
        Dtype::I32 => {
            raw.bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect()
        }
        Dtype::U8 => raw.bytes.iter().map(|&b| b.into()).collect(),
        _ => return None,
    };
    Some(Values::I64(whole))
}

struct TensorView<'a>(&'a Tensor);

impl View for TensorView<'_> {
    fn dtype(&self) -> Dtype {
        match self.0.values {
            Values::F32(_) => Dtype::F32,
            Values::I64(_) => Dtype::I64,
        }
    }
    fn shape(&self) -> &[usize] {
        &self.0.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        match &self.0.values {
            Values::F32(values) => format::encode_f32(values).into(),
            Values::I64(values) => {
                values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()
            }
        }
    }
    fn data_len(&self) -> usize {
        match &self.0.values {
            Values::F32(values) => values.len() * 4,
            Values::I64(values) => values.len() * 8,
        }
    }
}

/// Writes tensors; the file is replaced whole.
pub fn write(path: impl AsRef<Path>, tensors: &[(&str, &Tensor)]) -> Result<()> {
    let views = tensors.iter().map(|(name, t)| (name.to_string(), TensorView(t))).collect();
    format::write(path, views, &BTreeMap::from([("format".into(), "pt".into())]))
}

/// Reorders images from `[n, c, h, w]` to `[n, h, w, c]`.
///
/// # Errors
/// `values` does not have `n * c * h * w` elements.
pub fn nchw_to_nhwc(values: &[f32], [n, c, h, w]: [usize; 4]) -> Result<Vec<f32>> {
    check_len("nchw_to_nhwc", &[n, c, h, w], values.len())?;
    Ok(transpose_images(values, n, c, h * w))
}

/// Reorders images from `[n, h, w, c]` to `[n, c, h, w]`; the axes are given as
/// `[n, c, h, w]`, as in [`nchw_to_nhwc`].
///
/// # Errors
/// `values` does not have `n * c * h * w` elements.
pub fn nhwc_to_nchw(values: &[f32], [n, c, h, w]: [usize; 4]) -> Result<Vec<f32>> {
    check_len("nhwc_to_nchw", &[n, h, w, c], values.len())?;
    Ok(transpose_images(values, n, h * w, c))
}

/// Each image from `[rows, columns]` to `[columns, rows]`.
fn transpose_images(values: &[f32], n: usize, rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for i in 0..n {
        let image = &values[i * rows * columns..][..rows * columns];
        for c in 0..columns {
            out.extend((0..rows).map(|r| image[r * columns + c]));
        }
    }
    out
}
