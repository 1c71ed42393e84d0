//! CIFAR-10, binary version: records of one label byte and 3072 pixel bytes,
//! the red plane, then green, then blue, each 32 rows of 32.
//! A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

use std::fs;
use std::path::{Path, PathBuf};

use super::Raw;
use crate::{Error, Result};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const RECORD: usize = 1 + 3 * PLANE;
const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
const REMEDY: &str = "unpack cifar-10-binary.tar.gz (the \"binary version\") and name the folder \
                      cifar-10-batches-bin";

pub(super) fn read(path: &Path) -> Result<Raw> {
    let files = if path.is_dir() { training_batches(path)? } else { vec![path.to_path_buf()] };
    let mut labels = Vec::new();
    let mut pixels = Vec::new();
    for file in &files {
        let bytes = fs::read(file).map_err(Error::file("cannot read", file))?;
        if bytes.is_empty() || bytes.len() % RECORD != 0 {
            return Err(Error::content(
                file,
                format!(
                    "has {} bytes, not a multiple of the record's {RECORD}: it is truncated or \
                     not a batch; {REMEDY}",
                    bytes.len()
                ),
            ));
        }
        pixels.reserve(bytes.len());
        for (number, record) in bytes.chunks_exact(RECORD).enumerate() {
            let (label, planes) = (record[0], &record[1..]);
            if label as usize >= CLASSES.len() {
                return Err(Error::content(
                    file,
                    format!("record {number} has label {label}, not 0 to 9; {REMEDY}"),
                ));
            }
            labels.push(u32::from(label));
            let (red, rest) = planes.split_at(PLANE);
            let (green, blue) = rest.split_at(PLANE);
            for ((&r, &g), &b) in red.iter().zip(green).zip(blue) {
                pixels.extend([r, g, b]);
            }
        }
    }
    Ok(Raw {
        shape: [labels.len(), SIDE, SIDE, 3],
        pixels,
        labels: Some(labels),
        classes: CLASSES.map(String::from).to_vec(),
        levels: 256,
    })
}

/// data_batch_1.bin to data_batch_5.bin in `folder` or its cifar-10-batches-bin.
fn training_batches(folder: &Path) -> Result<Vec<PathBuf>> {
    let inner = folder.join("cifar-10-batches-bin");
    let home = if inner.is_dir() { inner.as_path() } else { folder };
    let batches: Vec<PathBuf> =
        (1..=5).map(|number| home.join(format!("data_batch_{number}.bin"))).collect();
    match batches.iter().find(|batch| !batch.is_file()) {
        None => Ok(batches),
        Some(missing) => Err(Error::content(
            folder,
            format!(
                "lacks `{}`; {REMEDY}",
                missing.strip_prefix(folder).unwrap_or(missing).display()
            ),
        )),
    }
}
