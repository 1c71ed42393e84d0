use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::{assert_refused, open};

/// Bytes of an IDX array of unsigned bytes.
fn idx(shape: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    bytes.extend(shape.iter().flat_map(|axis| axis.to_be_bytes()));
    bytes.extend(values);
    bytes
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// Three images of 2x3 with labels 2, 0, 1.
fn images() -> Vec<u8> {
    idx(&[3, 2, 3], &(0..18).map(|v| v * 15).collect::<Vec<u8>>())
}

fn labels() -> Vec<u8> {
    idx(&[3], &[2, 0, 1])
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn idx_reads_a_folder_a_file_and_packed_files_alike() {
    let folder = tempfile::tempdir().unwrap();
    let plain = write(folder.path(), "train-images-idx3-ubyte", &images());
    write(folder.path(), "train-labels-idx1-ubyte", &labels());
    write(folder.path(), "t10k-images-idx3-ubyte", &idx(&[1, 2, 3], &[0; 6]));
    write(folder.path(), "t10k-labels-idx1-ubyte", &idx(&[1], &[0]));
    let packed = tempfile::tempdir().unwrap();
    write(packed.path(), "train-images-idx3-ubyte.gz", &gz(&images()));
    write(packed.path(), "train-labels-idx1-ubyte.gz", &gz(&labels()));
    for path in [folder.path(), plain.as_path(), packed.path()] {
        let set = open("idx", path).unwrap();
        assert_eq!(set.shape(), [3, 2, 3, 1]);
        assert_eq!((set.image(1), set.levels()), (&[90, 105, 120, 135, 150, 165][..], 256));
        assert_eq!(set.labels().unwrap(), [2, 0, 1]);
        assert_eq!(set.classes(), ["0", "1", "2"]);
        assert_eq!(set.statistics().class_counts, [1, 1, 1]);
    }
    // An unpacked file beside its .gz is one set, not two.
    write(folder.path(), "train-images-idx3-ubyte.gz", &gz(&images()));
    assert_eq!(open("idx", folder.path()).unwrap().len(), 3);
}

#[test]
fn idx_without_labels_has_no_classes() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "pictures.idx", &images());
    let set = open("idx", &path).unwrap();
    assert_eq!((set.labels(), set.classes().len(), set.name.as_str()), (None, 0, "pictures"));
}

#[test]
fn idx_refuses_damaged_files_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let whole = images();
    let packed = gz(&whole);
    let mut flipped = packed.clone();
    let middle = flipped.len() - 6;
    flipped[middle] ^= 0x55;
    let mut longer = whole.clone();
    longer.push(0);
    let mut floats = whole.clone();
    floats[2] = 0x0d;
    let cases: [(&str, &[u8], &str); 9] = [
        ("short", &whole[..whole.len() - 1], "truncated"),
        ("header", &whole[..7], "ends before"),
        ("nothing", &[], "ends before"),
        ("long", &longer, "longer than its header"),
        ("text", b"not an idx file", "not an IDX file"),
        ("floats", &floats, "type 0x0d"),
        ("huge", &idx(&[u32::MAX, u32::MAX, u32::MAX], &[]), "impossible shape"),
        ("short.gz", &packed[..packed.len() - 9], "ends before"),
        ("flipped.gz", &flipped, "damaged .gz"),
    ];
    for (name, bytes, problem) in cases {
        let path = write(folder.path(), name, bytes);
        assert_refused(open("idx", &path), &[name, problem]);
    }
    let empty = write(folder.path(), "empty", &idx(&[0, 28, 28], &[]));
    assert_refused(open("idx", &empty), &["empty", "no image"]);
    let flat = write(folder.path(), "labels-file", &labels());
    assert_refused(open("idx", &flat), &["labels-file", "1 axes", "3"]);
}

#[test]
fn idx_refuses_labels_of_another_set_and_folders_without_a_clear_choice() {
    let folder = tempfile::tempdir().unwrap();
    assert_refused(open("idx", folder.path()), &["no IDX images file"]);
    write(folder.path(), "a-images-idx3-ubyte", &images());
    write(folder.path(), "a-labels-idx1-ubyte", &idx(&[2], &[0, 1]));
    assert_refused(open("idx", folder.path()), &["a-labels-idx1-ubyte", "[2]", "3 images"]);
    write(folder.path(), "b-images-idx3-ubyte", &images());
    let both = ["a-images-idx3-ubyte, b-images-idx3-ubyte", "name one"];
    assert_refused(open("idx", folder.path()), &both);
}
