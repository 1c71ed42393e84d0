//! Files that are replaced whole, never half: written aside in the same folder,
//! synced to the disk, renamed over the target, the folder synced.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

const PREFIX: &str = ".langevin-";
const SUFFIX: &str = ".tmp";

/// A hidden name in `folder` that no other live process uses.
pub(super) fn temporary_path(folder: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("{PREFIX}{}-{n}{SUFFIX}", std::process::id()))
}

/// The process id in the name of a temporary of this module.
fn temporary_owner(name: &str) -> Option<u32> {
    let middle = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    middle.split_once('-')?.0.parse().ok()
}

/// Says what the operating system's reason means for the user; the target is
/// untouched in every case.
pub(super) fn explain(source: io::Error) -> io::Error {
    let what = match source.kind() {
        io::ErrorKind::StorageFull => "no space left on the device",
        io::ErrorKind::QuotaExceeded => "the disk quota is used up",
        io::ErrorKind::FileTooLarge => "the file would pass the size limit",
        io::ErrorKind::PermissionDenied => "the folder cannot be written to",
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only",
        io::ErrorKind::NotFound => "the folder does not exist",
        io::ErrorKind::NotADirectory => "a part of the path is a file, not a folder",
        _ => return source,
    };
    io::Error::new(source.kind(), format!("{what} ({source}); what was there before is unchanged"))
}

/// The folder that holds `path`; `.` for a bare name.
pub(super) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Makes renames inside `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    // Only Unix lets a folder be opened and synced.
    if cfg!(unix) {
        File::open(folder)
            .and_then(|f| f.sync_all())
            .map_err(Error::file("cannot sync the folder", folder))?;
    }
    Ok(())
}

/// A file under construction. It takes its name on [`commit`](Self::commit);
/// dropped before that, it leaves nothing behind and the old file as it was.
///
/// A target that exists and is not a regular file (a pipe, `/dev/stdout`) is
/// written directly; a symbolic link is followed.
#[derive(Debug)]
pub struct AtomicFile {
    writer: BufWriter<File>,
    /// `None` when the target is written directly.
    temporary: Option<PathBuf>,
    target: PathBuf,
}

impl AtomicFile {
    /// Starts a file that will replace `path`.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fail = |e| Error::file("cannot write", path)(explain(e));
        let mut target = path.to_path_buf();
        let mut permissions = None;
        match fs::metadata(path) {
            Ok(m) if m.is_dir() => {
                return Err(Error::content(path, "is a folder; a file is to be written here"));
            }
            Ok(m) if m.is_file() => {
                target = fs::canonicalize(path).map_err(fail)?;
                permissions = Some(m.permissions());
            }
            Ok(_) => {
                let file = File::options().write(true).open(path).map_err(fail)?;
                return Ok(Self { writer: BufWriter::new(file), temporary: None, target });
            }
            Err(_) => {}
        }
        if target.file_name().is_none() {
            return Err(Error::content(path, "is not the name of a file"));
        }
        let temporary = temporary_path(parent_of(&target));
        let file = File::create(&temporary).map_err(fail)?;
        let this = Self { writer: BufWriter::new(file), temporary: Some(temporary), target };
        if let Some(p) = permissions {
            this.writer.get_ref().set_permissions(p).map_err(fail)?;
        }
        Ok(this)
    }

    /// Syncs the content and gives it the target's name.
    pub fn commit(mut self) -> Result<()> {
        self.finish().map_err(|e| Error::file("cannot write", &self.target)(explain(e)))?;
        match self.temporary.take() {
            Some(_) => sync_folder(parent_of(&self.target)),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.writer.flush()?;
        let Some(temporary) = &self.temporary else { return Ok(()) };
        self.writer.get_ref().sync_all()?;
        fs::rename(temporary, &self.target)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nothing can be done about a failure here; the next start cleans up.
            let _ = fs::remove_file(temporary);
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.writer.seek(to)
    }
}

/// Replaces `path` by what `body` writes. If `body` fails, the old file stays.
pub fn write_with(
    path: impl AsRef<Path>,
    body: impl FnOnce(&mut AtomicFile) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let mut file = AtomicFile::create(path)?;
    body(&mut file).map_err(|e| Error::file("cannot write", path)(explain(e)))?;
    file.commit()
}

/// Replaces `path` by `bytes`.
pub fn write_file(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    write_with(path, |file| file.write_all(bytes.as_ref()))
}

/// Removes from `folder` what processes that are gone left half-written, and
/// returns what was removed. With `all`, live processes' temporaries too: for
/// folders that only the caller writes in.
pub fn remove_leftovers(folder: &Path, all: bool) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file("cannot list", folder)(e)),
    };
    let mut removed = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("cannot list", folder))?.path();
        let Some(owner) = path.file_name().and_then(|n| n.to_str()).and_then(temporary_owner)
        else {
            continue;
        };
        if !all && owner != std::process::id() && may_be_alive(owner, &path) {
            continue;
        }
        remove_any(&path)?;
        removed.push(path);
    }
    removed.sort();
    Ok(removed)
}

/// Whether the process that owns a temporary may still write it. Where there is
/// no /proc to ask, one that was touched within the last hour may.
fn may_be_alive(owner: u32, temporary: &Path) -> bool {
    if Path::new("/proc/self").exists() {
        return Path::new(&format!("/proc/{owner}")).exists();
    }
    let age = fs::metadata(temporary).and_then(|m| m.modified()).map(|time| time.elapsed());
    matches!(age, Ok(Ok(age)) if age.as_secs() < 3600)
}

/// Removes a file or a whole folder.
pub(super) fn remove_any(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    }
    .map_err(Error::file("cannot remove", path))
}
