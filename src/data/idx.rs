//! IDX files, the format of MNIST and its kin (Fashion-MNIST, KMNIST, EMNIST):
//! two zero bytes, a type byte (8: unsigned byte), the number of axes, each
//! axis as a big-endian u32, then the bytes.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::Raw;
use crate::{Error, Result};

pub(super) fn read(path: &Path) -> Result<Raw> {
    let images_path = if path.is_dir() { find_images(path)? } else { path.to_path_buf() };
    let (shape, pixels) = read_array(&images_path)?;
    let &[n, height, width] = shape.as_slice() else {
        return Err(Error::content(
            &images_path,
            format!(
                "holds {} axes where images have 3 (number, rows, columns); name the images file \
                 (MNIST's is train-images-idx3-ubyte)",
                shape.len()
            ),
        ));
    };
    if pixels.is_empty() {
        return Err(Error::content(&images_path, "holds no image; download it again"));
    }
    let labels = match find_labels(&images_path) {
        None => None,
        Some(labels_path) => {
            let (shape, labels) = read_array(&labels_path)?;
            if shape != [n] {
                return Err(Error::content(
                    &labels_path,
                    format!(
                        "has shape {shape:?} but `{}` holds {n} images; both must come from the \
                         same set",
                        images_path.display()
                    ),
                ));
            }
            Some(labels.into_iter().map(u32::from).collect())
        }
    };
    Ok(Raw { pixels, shape: [n, height, width, 1], labels, classes: Vec::new(), levels: 256 })
}

/// The one images file of a folder; the training part where both parts lie there.
fn find_images(folder: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::file("cannot read", folder))? {
        let entry = entry.map_err(Error::file("cannot read", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains("images") && name.contains("idx3") && entry.path().is_file() {
            found.push(name);
        }
    }
    found.sort();
    // An unpacked file stands for its .gz.
    let all = found.clone();
    found.retain(|name| {
        !name.strip_suffix(".gz").is_some_and(|plain| all.iter().any(|n| n == plain))
    });
    if found.iter().any(|name| name.contains("train")) {
        found.retain(|name| name.contains("train"));
    }
    match found.as_slice() {
        [name] => Ok(folder.join(name)),
        [] => Err(Error::content(
            folder,
            "holds no IDX images file (a name like train-images-idx3-ubyte, .gz or not)",
        )),
        several => Err(Error::content(
            folder,
            format!("holds several images files ({}); name one: idx:FILE", several.join(", ")),
        )),
    }
}

/// The labels beside an images file: images -> labels and idx3 -> idx1 in its
/// name, packed or not.
fn find_labels(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_string_lossy().into_owned();
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    if !plain.contains("images") {
        return None;
    }
    let plain = plain.replace("images", "labels").replace("idx3", "idx1");
    let packed = format!("{plain}.gz");
    [plain, packed].into_iter().map(|name| images.with_file_name(name)).find(|path| path.is_file())
}

/// Axes and bytes of an IDX file, unpacked if it is packed.
fn read_array(path: &Path) -> Result<(Vec<usize>, Vec<u8>)> {
    let open = || File::open(path).map_err(Error::file("cannot read", path));
    let mut magic = Vec::new();
    open()?.take(2).read_to_end(&mut magic).map_err(Error::file("cannot read", path))?;
    let mut reader: Box<dyn Read> = if magic == [0x1f, 0x8b] {
        Box::new(MultiGzDecoder::new(BufReader::new(open()?)))
    } else {
        Box::new(BufReader::new(open()?))
    };
    let broken = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::content(path, "ends before its data does; download it again")
        }
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
            Error::content(path, format!("is a damaged .gz file ({source}); download it again"))
        }
        _ => Error::file("cannot read", path)(source),
    };
    let mut head = [0; 4];
    reader.read_exact(&mut head).map_err(broken)?;
    let [0, 0, kind, axes @ 1..=4] = head else {
        return Err(Error::content(
            path,
            format!("is not an IDX file (it starts with bytes {head:02x?}); download it again"),
        ));
    };
    if kind != 8 {
        return Err(Error::content(
            path,
            format!("holds IDX values of type 0x{kind:02x}; only bytes (0x08) are read"),
        ));
    }
    let mut shape = Vec::new();
    for _ in 0..axes {
        let mut axis = [0; 4];
        reader.read_exact(&mut axis).map_err(broken)?;
        shape.push(u32::from_be_bytes(axis) as usize);
    }
    let expected = shape.iter().try_fold(1u64, |product, &len| product.checked_mul(len as u64));
    let expected = expected.filter(|&len| len < 1 << 40).ok_or_else(|| {
        Error::content(path, format!("has an impossible shape {shape:?}; download it again"))
    })?;
    let mut bytes = Vec::new();
    reader.take(expected + 1).read_to_end(&mut bytes).map_err(broken)?;
    match bytes.len() as u64 {
        len if len < expected => Err(Error::content(
            path,
            format!(
                "is truncated: its header promises {expected} bytes of shape {shape:?}, {len} are \
                 there; download it again"
            ),
        )),
        len if len > expected => Err(Error::content(
            path,
            format!(
                "is longer than its header says (shape {shape:?}, {expected} bytes); download it \
                 again"
            ),
        )),
        _ => Ok((shape, bytes)),
    }
}
