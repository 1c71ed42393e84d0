//! A folder of PNG and JPEG files, read recursively in the order of their
//! paths. Where every file lies in a subfolder and there are at least two, the
//! first subfolder of its path is the class of a file.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader};

use super::{DataOptions, Raw, write_fitted, zeroed};
use crate::{Error, Result};

/// Pixels of the largest picture that is decoded: a header of a few bytes can
/// ask for gigabytes.
const MOST_PIXELS: u64 = 1 << 28;

/// What a file's header says, after its orientation is applied.
#[derive(Clone, Copy, Default)]
struct Header {
    size: [usize; 2],
    colour: bool,
}

pub(super) fn read(folder: &Path, options: &DataOptions) -> Result<Raw> {
    let mut found = Found::default();
    found.walk(folder)?;
    let mut files = found.pictures;
    if files.is_empty() {
        let besides = match found.other {
            Some(other) => format!(" (it holds other files, such as `{}`)", other.display()),
            None => String::new(),
        };
        return Err(Error::content(
            folder,
            format!("holds no PNG or JPEG file, here or in its subfolders{besides}"),
        ));
    }
    files.sort();
    let (labels, classes) = classes(folder, &files);
    files.truncate(options.limit.unwrap_or(usize::MAX));

    let threads = options
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |threads| threads.get()));
    let mut headers = vec![Header::default(); files.len()];
    each(threads, files.iter().zip(&mut headers), |(file, header)| {
        *header = read_header(file)?;
        Ok(())
    })?;
    let size = match options.size {
        Some(size) => size,
        None => common_size(folder, &files, &headers)?,
    };
    let channels =
        options.channels.unwrap_or(if headers.iter().any(|header| header.colour) { 3 } else { 1 });
    let shape = [files.len(), size[0], size[1], channels];
    let mut pixels = zeroed(shape, &folder.display().to_string())?;
    let images = pixels.chunks_exact_mut(shape[1..].iter().product());
    each(threads, files.iter().zip(images), |(file, out)| {
        write_fitted(decode(file)?, size, channels, out);
        Ok(())
    })?;
    Ok(Raw { pixels, shape, labels, classes, levels: 256 })
}

/// Files below a folder.
#[derive(Default)]
struct Found {
    pictures: Vec<PathBuf>,
    /// One file that is no picture, for the message.
    other: Option<PathBuf>,
    /// Folders walked, by canonical path: links may form a ring.
    walked: BTreeSet<PathBuf>,
}

impl Found {
    fn walk(&mut self, folder: &Path) -> Result<()> {
        let cannot_read = |source| Error::file("cannot read", folder)(source);
        if !self.walked.insert(folder.canonicalize().map_err(cannot_read)?) {
            return Ok(());
        }
        for entry in fs::read_dir(folder).map_err(cannot_read)? {
            let path = entry.map_err(cannot_read)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            if name.starts_with('.') || name == "__MACOSX" {
                continue;
            }
            let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
            if path.is_dir() {
                self.walk(&path)?;
            } else if matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg")) {
                self.pictures.push(path);
            } else {
                self.other = Some(path);
            }
        }
        Ok(())
    }
}

/// Labels and class names from the first subfolder of each path.
fn classes(folder: &Path, files: &[PathBuf]) -> (Option<Vec<u32>>, Vec<String>) {
    let class_of = |file: &PathBuf| {
        let inside = file.strip_prefix(folder).expect("files lie below their folder");
        let first = inside.components().next()?.as_os_str().to_string_lossy().into_owned();
        (inside.components().count() > 1).then_some(first)
    };
    let Some(of_file) = files.iter().map(class_of).collect::<Option<Vec<String>>>() else {
        return (None, Vec::new());
    };
    let names: BTreeSet<&String> = of_file.iter().collect();
    let names: Vec<String> = names.into_iter().cloned().collect();
    if names.len() < 2 {
        return (None, Vec::new());
    }
    let label = |name| names.binary_search(name).expect("every name was collected") as u32;
    (Some(of_file.iter().map(label).collect()), names)
}

/// The size all files have, or an error that names two that differ.
fn common_size(folder: &Path, files: &[PathBuf], headers: &[Header]) -> Result<[usize; 2]> {
    let size = headers[0].size;
    match headers.iter().position(|header| header.size != size) {
        None => Ok(size),
        Some(other) => {
            let [[h0, w0], [h1, w1]] = [size, headers[other].size];
            Err(Error::content(
                folder,
                format!(
                    "its images differ in size: `{}` is {h0}x{w0} and `{}` is {h1}x{w1} (height x \
                     width); give the size to resize and crop to, e.g. --set data.size=[64,64]",
                    files[0].display(),
                    files[other].display()
                ),
            ))
        }
    }
}

/// Runs `work` on every item, several at a time. Of the errors, the first in
/// the order of the items is returned, whatever the threads' timing.
fn each<T: Send>(
    threads: usize,
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(T) -> Result<()> + Sync,
) -> Result<()> {
    let items = Mutex::new(items.enumerate());
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    // Items are handed out in order, so all before a failed one
                    // have been handed out and will be finished.
                    if failed.lock().expect("no thread panics holding it").is_some() {
                        return;
                    }
                    let next = items.lock().expect("no thread panics holding it").next();
                    let Some((index, item)) = next else { return };
                    if let Err(error) = work(item) {
                        let mut failed = failed.lock().expect("no thread panics holding it");
                        if failed.as_ref().is_none_or(|(first, _)| index < *first) {
                            *failed = Some((index, error));
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().expect("no thread panics holding it") {
        None => Ok(()),
        Some((_, error)) => Err(error),
    }
}

/// Opens a picture; its format is told by its content, not by its name.
fn open(file: &Path) -> Result<impl ImageDecoder> {
    let cannot_read = |source| Error::file("cannot read", file)(source);
    let reader = BufReader::new(File::open(file).map_err(cannot_read)?);
    let reader = ImageReader::new(reader).with_guessed_format().map_err(cannot_read)?;
    if reader.format().is_none() {
        return Err(Error::content(
            file,
            "is not a PNG or JPEG picture, whatever its name says; remove or convert it",
        ));
    }
    reader.into_decoder().map_err(|error| not_decoded(file, error))
}

fn not_decoded(file: &Path, error: ImageError) -> Error {
    match error {
        ImageError::IoError(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
            Error::file("cannot read", file)(source)
        }
        error => Error::content(file, format!("cannot be decoded ({error}); remove or replace it")),
    }
}

fn read_header(file: &Path) -> Result<Header> {
    let mut decoder = open(file)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(Error::content(
            file,
            format!(
                "says it is {width}x{height} pixels, more than the {MOST_PIXELS} that are read; \
                 scale it down or remove it"
            ),
        ));
    }
    let colour = decoder.color_type().has_color();
    let turned = decoder.orientation().is_ok_and(|orientation| {
        use image::metadata::Orientation::*;
        matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
    });
    let (width, height) = if turned { (height, width) } else { (width, height) };
    Ok(Header { size: [height as usize, width as usize], colour })
}

/// The picture, turned as its camera noted.
fn decode(file: &Path) -> Result<DynamicImage> {
    let mut decoder = open(file)?;
    let orientation = decoder.orientation();
    let mut image =
        DynamicImage::from_decoder(decoder).map_err(|error| not_decoded(file, error))?;
    if let Ok(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    Ok(image)
}
