use std::fs;
use std::path::Path;

use crate::{assert_refused, open};

/// A record whose red, green and blue planes start with three telling bytes.
fn record(label: u8, mark: u8) -> Vec<u8> {
    let mut record = vec![0; 3073];
    record[0] = label;
    for (plane, offset) in [1, 1025, 2049].into_iter().enumerate() {
        record[offset] = mark + plane as u8;
        record[offset + 33] = 100 + plane as u8;
    }
    record
}

fn write_batches(folder: &Path) {
    for number in 1..=5u8 {
        let records = [record(number, 10 * number), record(0, 200)].concat();
        fs::write(folder.join(format!("data_batch_{number}.bin")), records).unwrap();
    }
}

#[test]
fn cifar_reads_five_batches_with_planes_woven_into_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("cifar-10-batches-bin");
    fs::create_dir(&inner).unwrap();
    write_batches(&inner);
    for path in [folder.path(), inner.as_path()] {
        let set = open("cifar10", path).unwrap();
        assert_eq!((set.shape(), set.name.as_str()), ([10, 32, 32, 3], "cifar10"));
        assert_eq!(set.labels().unwrap(), [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]);
        assert_eq!((set.classes()[1].as_str(), set.classes().len()), ("automobile", 10));
        // Pixel (0, 0), and pixel 33 of each plane: row 1, column 1.
        assert_eq!(set.image(4)[..3], [30, 31, 32]);
        assert_eq!(set.image(4)[(32 + 1) * 3..][..3], [100, 101, 102]);
    }
    let one = open("cifar10", &inner.join("data_batch_2.bin")).unwrap();
    assert_eq!((one.len(), one.image(0)[0]), (2, 20));
}

#[test]
fn cifar_refuses_missing_truncated_and_foreign_files_by_name() {
    let folder = tempfile::tempdir().unwrap();
    assert_refused(open("cifar10", folder.path()), &["data_batch_1.bin", "binary version"]);
    write_batches(folder.path());
    let third = folder.path().join("data_batch_3.bin");
    fs::write(&third, &record(1, 1)[..3000]).unwrap();
    assert_refused(open("cifar10", folder.path()), &["data_batch_3.bin", "3000 bytes", "3073"]);
    fs::write(&third, [record(1, 1), record(77, 1)].concat()).unwrap();
    assert_refused(open("cifar10", folder.path()), &["data_batch_3.bin", "record 1", "label 77"]);
    fs::write(&third, b"").unwrap();
    assert_refused(open("cifar10", folder.path()), &["data_batch_3.bin", "0 bytes"]);
    fs::remove_file(&third).unwrap();
    assert_refused(open("cifar10", folder.path()), &["data_batch_3.bin"]);
}
