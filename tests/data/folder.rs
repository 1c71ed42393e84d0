use std::fs;
use std::path::Path;

use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use langevin::data::{DataOptions, Dataset};

use crate::{assert_refused, open};

fn grey(folder: &Path, name: &str, [height, width]: [u32; 2], value: u8) {
    save(folder, name, GrayImage::from_pixel(width, height, Luma([value])).into());
}

fn save(folder: &Path, name: &str, image: DynamicImage) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.save(path).unwrap();
}

fn open_with(path: &Path, options: DataOptions) -> langevin::Result<Dataset> {
    Dataset::open(&format!("folder:{}", path.display()), &options)
}

#[test]
fn a_folder_is_read_recursively_in_the_order_of_paths_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..40u8 {
        grey(folder.path(), &format!("{}/{:02}.png", i % 3, i), [5, 4], i);
    }
    grey(folder.path(), "top.PNG", [5, 4], 99);
    grey(folder.path(), ".hidden/skipped.png", [7, 7], 1);
    fs::write(folder.path().join("notes.txt"), "not a picture").unwrap();
    let mut expected: Vec<u8> = (0..40).collect();
    expected.sort_by_key(|i| (i % 3, *i));
    expected.push(99);
    for threads in [1, 2, 7] {
        let options = DataOptions { threads: Some(threads), ..Default::default() };
        let set = open_with(folder.path(), options).unwrap();
        assert_eq!(set.shape(), [41, 5, 4, 1]);
        let order: Vec<u8> = (0..41).map(|i| set.image(i)[0]).collect();
        assert_eq!(order, expected);
        assert_eq!(set.labels(), None, "a file at the top has no class");
    }
    let limited = DataOptions { limit: Some(3), ..Default::default() };
    assert_eq!(open_with(folder.path(), limited).unwrap().len(), 3);
}

#[test]
fn subfolders_are_classes_sorted_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [("dog/b.png", 1), ("cat/deep/a.png", 2), ("dog/a.png", 3)] {
        grey(folder.path(), name, [2, 2], value);
    }
    let set = open("folder", folder.path()).unwrap();
    assert_eq!(set.classes(), ["cat", "dog"]);
    assert_eq!(set.labels().unwrap(), [0, 1, 1]);
    assert_eq!([set.image(0)[0], set.image(1)[0], set.image(2)[0]], [2, 3, 1]);
}

#[test]
fn one_colour_picture_makes_the_set_colour_and_channels_override() {
    let folder = tempfile::tempdir().unwrap();
    grey(folder.path(), "a.png", [2, 2], 50);
    save(folder.path(), "b.png", RgbImage::from_pixel(2, 2, Rgb([255, 0, 0])).into());
    let set = open("folder", folder.path()).unwrap();
    assert_eq!(set.shape(), [2, 2, 2, 3]);
    assert_eq!((&set.image(0)[..3], &set.image(1)[..3]), (&[50, 50, 50][..], &[255, 0, 0][..]));
    let options = DataOptions { channels: Some(1), ..Default::default() };
    let set = open_with(folder.path(), options).unwrap();
    assert_eq!((set.channels(), set.image(0)[0]), (1, 50));
    assert!((30..90).contains(&set.image(1)[0]), "red is dark grey");
}

#[test]
fn a_size_scales_to_cover_and_crops_the_centre() {
    let folder = tempfile::tempdir().unwrap();
    // Wide: black, white, black thirds; the middle third is the centre crop.
    let wide = GrayImage::from_fn(24, 8, |x, _| Luma([if x / 8 == 1 { 255 } else { 0 }]));
    save(folder.path(), "a.png", wide.clone().into());
    let turned = image::imageops::rotate90(&wide);
    save(folder.path(), "b.png", turned.into());
    let options = DataOptions { size: Some([4, 4]), ..Default::default() };
    let set = open_with(folder.path(), options).unwrap();
    assert_eq!(set.shape(), [2, 4, 4, 1]);
    for image in [set.image(0), set.image(1)] {
        assert!(image[5] == 255 && image[10] == 255, "{image:?}");
    }
    // Halving averages: stripes one pixel wide become grey.
    let stripes = GrayImage::from_fn(16, 16, |x, _| Luma([if x % 2 == 0 { 255 } else { 0 }]));
    save(folder.path(), "c.png", stripes.into());
    let options = DataOptions { size: Some([4, 4]), ..Default::default() };
    let grey = open_with(folder.path(), options).unwrap();
    assert!(grey.image(2).iter().all(|v| (100..156).contains(v)), "{:?}", grey.image(2));
}

#[test]
fn jpeg_is_told_by_content_whatever_the_name_says() {
    let folder = tempfile::tempdir().unwrap();
    let picture = DynamicImage::from(RgbImage::from_pixel(8, 8, Rgb([200, 100, 50])));
    picture.save_with_format(folder.path().join("a.jpeg"), ImageFormat::Jpeg).unwrap();
    picture.save_with_format(folder.path().join("b.png"), ImageFormat::Jpeg).unwrap();
    let set = open("folder", folder.path()).unwrap();
    assert_eq!(set.shape(), [2, 8, 8, 3]);
    assert_eq!(set.image(0), set.image(1));
    assert!((195..=205).contains(&set.image(0)[0]));
}

#[test]
fn images_of_different_sizes_are_refused_with_two_names_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    for (name, size) in [("a.png", [4, 6]), ("b.png", [4, 6]), ("c.png", [5, 6])] {
        grey(folder.path(), name, size, 0);
    }
    let parts = ["a.png` is 4x6", "c.png` is 5x6", "data.size"];
    assert_refused(open("folder", folder.path()), &parts);
    let options = DataOptions { size: Some([4, 4]), ..Default::default() };
    assert_eq!(open_with(folder.path(), options).unwrap().shape(), [3, 4, 4, 1]);
}

#[test]
fn a_text_file_named_png_is_refused_by_name_the_first_of_several() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..20 {
        grey(folder.path(), &format!("{i:02}.png"), [3, 3], i);
    }
    for name in ["05.png", "11.png"] {
        fs::write(folder.path().join(name), "I am text.").unwrap();
    }
    for threads in [1, 4] {
        let options = DataOptions { threads: Some(threads), ..Default::default() };
        assert_refused(open_with(folder.path(), options), &["05.png", "not a PNG or JPEG"]);
    }
}

#[test]
fn truncated_and_empty_pictures_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let noise = GrayImage::from_fn(40, 40, |x, y| Luma([(x * 31 + y * 57 + x * y) as u8]));
    save(folder.path(), "a.png", noise.clone().into());
    let path = folder.path().join("a.png");
    let whole = fs::read(&path).unwrap();
    for len in [0, 20, whole.len() / 2] {
        fs::write(&path, &whole[..len]).unwrap();
        assert_refused(open("folder", folder.path()), &["a.png"]);
    }
}

#[test]
fn a_folder_without_pictures_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("inner")).unwrap();
    assert_refused(open("folder", folder.path()), &["no PNG or JPEG"]);
    fs::write(folder.path().join("inner/film.webp"), "x").unwrap();
    assert_refused(open("folder", folder.path()), &["no PNG or JPEG", "film.webp"]);
}

#[cfg(unix)]
#[test]
fn a_ring_of_links_is_walked_once() {
    let folder = tempfile::tempdir().unwrap();
    grey(folder.path(), "in/a.png", [2, 2], 7);
    std::os::unix::fs::symlink(folder.path(), folder.path().join("in/back")).unwrap();
    assert_eq!(open("folder", folder.path()).unwrap().len(), 1);
}

#[test]
fn a_header_that_claims_billions_of_pixels_is_refused_before_decoding() {
    let folder = tempfile::tempdir().unwrap();
    grey(folder.path(), "bomb.png", [1, 1], 0);
    let path = folder.path().join("bomb.png");
    let mut bytes = fs::read(&path).unwrap();
    // Width and height stand after the signature and the chunk's length and type;
    // the chunk's checksum covers its type and 13 bytes.
    bytes[16..20].copy_from_slice(&65_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&65_000u32.to_be_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    fs::write(&path, bytes).unwrap();
    assert_refused(open("folder", folder.path()), &["bomb.png", "65000x65000"]);
}
