use image::GenericImageView;
use langevin::picture::{grid_png, image_png, to_byte};

#[test]
fn bytes_round_as_diffusers_rounds() {
    // (x / 2 + 0.5).clamp(0, 1) * 255, numpy's round: ties to even.
    let cases =
        [(-1.0, 0), (1.0, 255), (-7.0, 0), (7.0, 255), (0.0, 128), (-0.5, 64), (f32::NAN, 0)];
    for (value, byte) in cases {
        assert_eq!(to_byte(value), byte, "{value}");
    }
    for byte in 0..=255u8 {
        assert_eq!(to_byte(2.0 * f32::from(byte) / 255.0 - 1.0), byte);
    }
}

#[test]
fn an_image_keeps_its_pixels() {
    let grey = image::load_from_memory(&image_png(&[-1.0, 0.0, 1.0, -1.0, 1.0, 0.0], [2, 3, 1]));
    let grey = grey.unwrap().into_luma8();
    assert_eq!(
        (grey.dimensions(), grey.as_raw().as_slice()),
        ((3, 2), &[0, 128, 255, 0, 255, 128][..])
    );
    let colour = image::load_from_memory(&image_png(&[-1.0, 0.0, 1.0], [1, 1, 3])).unwrap();
    assert_eq!(colour.into_rgb8().into_raw(), [0, 128, 255]);
}

#[test]
fn a_grid_enlarges_small_images_and_separates_them() {
    // Three 8x8 images, white, black, white: two columns, two rows, factor 6.
    let mut images = vec![1.0; 3 * 64];
    images[64..128].fill(-1.0);
    let grid =
        image::load_from_memory(&grid_png(&images, [3, 8, 8, 1], None)).unwrap().into_luma8();
    assert_eq!(grid.dimensions(), (2 + 2 * 50, 2 + 2 * 50));
    let at = |x, y| grid.get_pixel(x, y).0[0];
    assert_eq!([at(2, 2), at(49, 49), at(52, 2), at(2, 52)], [255, 255, 0, 255]);
    let gutter = at(0, 0);
    assert!(gutter > 0 && gutter < 255);
    assert_eq!([at(50, 2), at(51, 30), at(52, 52), at(101, 101)], [gutter; 4]);
}

#[test]
fn a_grid_takes_given_columns_and_leaves_large_images_alone() {
    let images = vec![0.5; 6 * 64 * 50 * 3];
    let grid = image::load_from_memory(&grid_png(&images, [6, 64, 50, 3], Some(6))).unwrap();
    assert_eq!(grid.dimensions(), (2 + 6 * 52, 2 + 66));
    assert_eq!(grid.get_pixel(2, 2).0, [191, 191, 191, 255]);
}

#[test]
fn other_numbers_of_channels_stand_side_by_side() {
    let latent = image_png(&[-1.0, 0.0, 1.0, 0.0], [1, 1, 4]);
    let latent = image::load_from_memory(&latent).unwrap().into_luma8();
    assert_eq!(latent.dimensions(), (7, 1));
    let panels: Vec<u8> = latent.into_raw().into_iter().step_by(2).collect();
    assert_eq!(panels, [0, 128, 255, 128]);
}
