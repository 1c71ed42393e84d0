use std::fs::File;
use std::io::Write;
use std::path::Path;

use npyz::WriterBuilder;
use zip::write::SimpleFileOptions;

use crate::{assert_refused, open};

/// Bytes of an .npy file.
fn npy<T: npyz::AutoSerialize + Copy>(shape: &[u64], order: npyz::Order, values: &[T]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(shape)
        .order(order)
        .writer(&mut bytes)
        .begin_nd()
        .unwrap();
    writer.extend(values.iter().copied()).unwrap();
    writer.finish().unwrap();
    bytes
}

fn c<T: npyz::AutoSerialize + Copy>(shape: &[u64], values: &[T]) -> Vec<u8> {
    npy(shape, npyz::Order::C, values)
}

fn write(path: &Path, arrays: &[(&str, Vec<u8>)]) {
    let mut archive = zip::ZipWriter::new(File::create(path).unwrap());
    for (i, (name, bytes)) in arrays.iter().enumerate() {
        let method = [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated][i % 2];
        let options = SimpleFileOptions::default().compression_method(method);
        archive.start_file(format!("{name}.npy"), options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
}

#[test]
fn npz_reads_bytes_in_every_layout_with_labels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.npz");
    // Two images of 2 rows, 3 columns, 3 channels; value = n 100 + y 30 + x 10 + c.
    let value = |n, y, x, c| (n * 100 + y * 30 + x * 10 + c) as u8;
    let mut nhwc = Vec::new();
    let mut nchw = Vec::new();
    let mut fortran = Vec::new();
    for n in 0..2 {
        (0..18).for_each(|i| nhwc.push(value(n, i / 9, i / 3 % 3, i % 3)));
        (0..18).for_each(|i| nchw.push(value(n, i / 3 % 2, i % 3, i / 6)));
    }
    (0..36).for_each(|i| fortran.push(value(i % 2, i / 2 % 2, i / 4 % 3, i / 12)));
    for images in [
        ("images", c(&[2, 2, 3, 3], &nhwc)),
        ("x", npy(&[2, 2, 3, 3], npyz::Order::Fortran, &fortran)),
    ] {
        write(&path, &[images, ("labels", c(&[2], &[1i64, 0]))]);
        let set = open("npz", &path).unwrap();
        assert_eq!((set.shape(), set.image(0)), ([2, 2, 3, 3], &nhwc[..18]));
        assert_eq!(set.image(1), &nhwc[18..]);
        assert_eq!((set.labels().unwrap(), set.classes().len()), (&[1, 0][..], 2));
    }
    // Five columns, so that the last axis cannot be channels.
    let wide: Vec<u8> = (0..30).collect();
    write(&path, &[("arr_0", c(&[1, 3, 2, 5], &wide))]);
    let set = open("npz", &path).unwrap();
    assert_eq!((set.shape(), &set.image(0)[..6]), ([1, 2, 5, 3], &[0, 10, 20, 1, 11, 21][..]));
    write(&path, &[("x_train", c(&[3, 2, 5], &wide)), ("y_train", c(&[3, 1], &[0u8, 2, 1]))]);
    let set = open("npz", &path).unwrap();
    assert_eq!((set.shape(), set.image(2)), ([3, 2, 5, 1], &wide[20..]));
    assert_eq!(set.labels().unwrap(), [0, 2, 1]);
}

#[test]
fn npz_maps_floats_of_each_usual_range_to_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.npz");
    let check = |values: Vec<u8>, bytes: [u8; 4]| {
        write(&path, &[("images", values)]);
        assert_eq!(open("npz", &path).unwrap().image(0), bytes);
    };
    let shape = [1, 2, 2];
    check(c(&shape, &[-1.0f32, 0.0, 0.5, 1.0]), [0, 128, 191, 255]);
    check(c(&shape, &[0.0f64, 0.2, 0.4, 1.0]), [0, 51, 102, 255]);
    check(c(&shape, &[0.0f32, 17.2, 254.7, 255.0]), [0, 17, 255, 255]);
    check(c(&shape, &[0i32, 1, 2, 255]), [0, 1, 2, 255]);
    check(c(&shape, &[0u16, 1, 1, 0]), [0, 1, 1, 0]);
}

#[test]
fn npz_refuses_what_is_no_set_of_images_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.npz");
    let images = || ("images", c(&[2, 2, 2], &[0u8; 8]));
    type Arrays = Vec<(&'static str, Vec<u8>)>;
    let cases: [(Arrays, &str); 13] = [
        (vec![], "holds nothing"),
        (vec![("pictures", c(&[1, 2, 2], &[0u8; 4]))], "pictures.npy"),
        (vec![("images", c(&[4, 2], &[0u8; 8]))], "[4, 2]"),
        (vec![("images", c(&[1, 5, 2, 5], &[0u8; 50]))], "[1, 5, 2, 5]"),
        (vec![("images", c::<u8>(&[0, 2, 2], &[]))], "is empty"),
        (vec![("images", c(&[1, 1, 2], &[0i64, 256]))], "from 0 to 256"),
        (vec![("images", c(&[1, 1, 2], &[-3.0f32, 1.0]))], "from -3 to 1"),
        (vec![("images", c(&[1, 1, 2], &[f32::NAN, 1.0]))], "not finite"),
        (vec![("images", b"no npy".to_vec())], "`images` is damaged"),
        (vec![("images", images().1[..131].to_vec())], "8 bytes, 3 are there"),
        (vec![images(), ("labels", c(&[3], &[0i64; 3]))], "[3] for 2 images"),
        (vec![images(), ("labels", c(&[2], &[0i64, -1]))], "label -1"),
        (vec![images(), ("labels", c(&[2], &[0.0f32, 1.0]))], "floats"),
    ];
    for (arrays, problem) in cases {
        write(&path, &arrays);
        assert_refused(open("npz", &path), &["bad.npz", problem]);
    }
    write(&path, &[images()]);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 30]).unwrap();
    assert_refused(open("npz", &path), &["bad.npz", "not an .npz archive"]);
    // A bit flipped in the pixels is found by the archive's checksum.
    let mut flipped = whole.clone();
    let header = whole.windows(6).position(|bytes| bytes == b"\x93NUMPY").unwrap();
    let pixels = header + whole[header..].iter().position(|&byte| byte == b'\n').unwrap() + 1;
    flipped[pixels + 2] ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    assert_refused(open("npz", &path), &["bad.npz", "`images` is damaged"]);
}
