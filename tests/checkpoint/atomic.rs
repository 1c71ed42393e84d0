//! Files are replaced whole or stay as they were.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use langevin::Error;
use langevin::checkpoint::atomic::{AtomicFile, remove_leftovers, write_file, write_with};
use langevin::checkpoint::training::RunDirectory;

use crate::support::{Sample, child_folder, names, run_child, snapshot};

#[test]
fn a_file_is_replaced_and_nothing_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grid.png");
    write_file(&path, b"one").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"one");
    write_file(&path, b"two and more").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two and more");
    assert_eq!(names(folder.path()), ["grid.png"]);
}

#[test]
fn a_writer_that_fails_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grid.png");
    write_file(&path, b"old").unwrap();
    let error = write_with(&path, |file| {
        file.write_all(&[0; 100_000])?;
        Err(io::Error::other("the encoder gave up"))
    })
    .unwrap_err();
    assert!(error.to_string().contains("the encoder gave up"), "{error}");
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"new").unwrap();
    drop(file);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["grid.png"]);
}

#[test]
fn a_reader_never_sees_half_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("numbers");
    write_file(&path, vec![0; 50_000]).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 1..30 {
                write_file(&path, vec![i; 50_000]).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let seen = fs::read(&path).unwrap();
            assert_eq!(seen.len(), 50_000);
            assert!(seen.iter().all(|&b| b == seen[0]));
        }
    });
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_permissions_kept() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("file"), folder.path().join("link"));
    write_file(&path, b"old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    write_file(&link, b"new").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn a_target_that_cannot_be_written_is_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    write_file(&file, b"x").unwrap();
    for (path, reason) in [
        (folder.path().to_path_buf(), "is a folder"),
        (folder.path().join("absent/grid.png"), "the folder does not exist"),
        (file.join("grid.png"), "is a file, not a folder"),
        (Path::new("..").to_path_buf(), "is a folder"),
    ] {
        let error = write_file(&path, b"y").unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        assert!(text.contains(reason) && text.contains(&*path.to_string_lossy()), "{text}");
    }
    assert_eq!(names(folder.path()), ["file"]);
}

/// Root may write anywhere but in the kernel's own file systems.
#[cfg(target_os = "linux")]
#[test]
fn an_unwritable_folder_is_a_clear_error() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    let root = fs::write(closed.join("probe"), b"").is_ok();
    let path = if root { Path::new("/sys/grid.png").into() } else { closed.join("grid.png") };
    let error = write_file(&path, b"x").unwrap_err();
    let Error::File { source, .. } = &error else { panic!("{error}") };
    let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
    assert!(kinds.contains(&source.kind()), "{error}");
    assert!(error.to_string().contains("what was there before is unchanged"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_device_is_written_directly_and_reports_that_it_is_full() {
    use std::os::unix::fs::FileTypeExt;
    write_file("/dev/null", b"x").unwrap();
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let error = write_file("/dev/full", b"x").unwrap_err();
    assert!(error.to_string().contains("no space left on the device"), "{error}");
}

#[test]
fn leftovers_of_dead_processes_are_removed_and_others_kept() {
    let folder = tempfile::tempdir().unwrap();
    // No process has this number: the kernel's limit is 2^22.
    let dead = folder.path().join(".langevin-4194999-0.tmp");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("half"), b"x").unwrap();
    for name in [".langevin-1-0.tmp", ".langevin-x.tmp", ".hidden", "langevin-4194999-0.tmp"] {
        fs::write(folder.path().join(name), b"x").unwrap();
    }
    assert_eq!(remove_leftovers(folder.path(), false).unwrap(), [dead]);
    assert_eq!(
        names(folder.path()),
        [".hidden", ".langevin-1-0.tmp", ".langevin-x.tmp", "langevin-4194999-0.tmp"]
    );
    assert_eq!(remove_leftovers(folder.path(), true).unwrap().len(), 1);
    assert!(remove_leftovers(&folder.path().join("absent"), true).unwrap().is_empty());
}

/// In a process that cannot write more than some kB: saves once before the limit
/// bites, then must fail and leave everything as it was.
fn fill_up(folder: &Path, kinds: &[io::ErrorKind]) {
    let path = folder.join("samples");
    write_file(&path, b"old").unwrap();
    let mut run = RunDirectory::open(folder.join("run")).unwrap();
    run.save(&Sample::new(1).pipeline()).unwrap();
    let before = snapshot(folder);

    let expect = |error: Error| {
        let Error::File { source, .. } = &error else { panic!("{error}") };
        assert!(kinds.contains(&source.kind()), "{error}");
        assert!(error.to_string().contains("what was there before is unchanged"), "{error}");
    };
    expect(write_file(&path, vec![1; 4 << 20]).unwrap_err());
    let mut large = Sample::new(2);
    let mut plan = langevin::plan::Plan::new();
    plan.parameters = large.parameters.clone();
    let (layout, init) = (langevin::plan::DiskLayout::Same, langevin::plan::Init::Constant(0.0));
    plan.parameter("large", &[1 << 20], layout, init, true);
    large.parameters = plan.parameters;
    for arena in [&mut large.average, &mut large.raw, &mut large.first, &mut large.second] {
        arena.resize(large.parameters.arena_len(), 1.0);
    }
    expect(run.save(&large.pipeline()).unwrap_err());

    assert!(before == snapshot(folder), "something changed or was left behind");
    assert_eq!(names(&folder.join("run/checkpoints")), ["step-1"]);
    println!("filled up");
}

#[test]
#[ignore = "run by a parent test under a file size limit"]
fn child_under_a_size_limit() {
    fill_up(&child_folder(), &[io::ErrorKind::FileTooLarge]);
}

#[test]
#[ignore = "run by a parent test on a full file system"]
fn child_on_a_full_disk() {
    fill_up(&child_folder(), &[io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded]);
}

#[cfg(unix)]
#[test]
fn past_the_size_limit_the_old_files_stay() {
    let folder = tempfile::tempdir().unwrap();
    // The signal is ignored so that the write itself reports the limit.
    let shell = r#"trap "" XFSZ; ulimit -f 256 && exec "$@""#;
    let output = run_child("atomic::child_under_a_size_limit", folder.path(), shell);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("filled up"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_full_disk_the_old_files_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mount = r#"mount -t tmpfs -o size=256k tmpfs "$LANGEVIN_CHECKPOINT_TEST_FOLDER""#;
    let shell = format!(r#"exec unshare -rm sh -c '{mount} || exit 77; exec "$@"' sh "$@""#);
    let output = run_child("atomic::child_on_a_full_disk", folder.path(), &shell);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || text.contains("unshare") {
        // Not by eprintln, which a passing test swallows.
        let mut stderr = io::stderr();
        writeln!(stderr, "SKIPPED on_a_full_disk_the_old_files_stay: no tmpfs here: {text}")
            .unwrap();
        return;
    }
    assert!(output.status.success() && text.contains("filled up"), "{text}");
}
