use image::GenericImageView;
use langevin::data::{DataOptions, Dataset};
use langevin::picture::{grid_png, image_png, loss_curve, to_byte};
use langevin::train::metrics::Record;

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

/// A run as runs go: a falling, noisy loss, higher for times near the data.
fn records(count: u64) -> Vec<Record> {
    let mut noise = 1u64;
    let mut noisy = |scale: f32| {
        noise = noise.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        1.0 + scale * ((noise >> 40) as f32 / (1u64 << 24) as f32 - 0.5)
    };
    (1..=count)
        .map(|i| {
            let x = i as f32 / count as f32;
            let loss = 0.06 + 0.9 * (-14.0 * x).exp();
            Record {
                step: 10 * i,
                images_seen: 640 * i,
                epoch: i as f64,
                loss: loss * noisy(0.5),
                loss_quartiles: [
                    Some((0.22 + loss) * noisy(0.6)),
                    Some(loss * noisy(0.5)),
                    Some(0.5 * loss * noisy(0.5)),
                    (i % 5 > 0).then(|| 0.25 * loss * noisy(0.5)),
                ],
                gradient_norm: (0.2 + 3.0 * (-20.0 * x).exp()) * noisy(1.2),
                learning_rate: 2e-3 * (f64::from(x) * 40.0).min(1.0) * f64::from(1.0 - x),
                ema_decay: 0.995,
                seconds: i as f64,
                images_per_second: 3000.0,
            }
        })
        .collect()
}

#[test]
fn the_loss_curve_is_a_thousand_pixels_wide_and_shows_the_loss() {
    keep("curve5.png", &loss_curve(&records(5)));
    let png = loss_curve(&records(400));
    keep("curve.png", &png);
    let picture = image::load_from_memory(&png).unwrap().into_rgb8();
    assert_eq!(picture.dimensions(), (1000, 640));
    let inked = |picture: &image::RgbImage| {
        picture.pixels().filter(|pixel| pixel.0.iter().any(|&byte| byte < 200)).count()
    };
    let empty = image::load_from_memory(&loss_curve(&[])).unwrap().into_rgb8();
    assert!(inked(&empty) > 500, "axes and labels are drawn without records");
    assert!(inked(&picture) > inked(&empty) + 3000, "lines are drawn");
    assert_eq!(png, loss_curve(&records(400)), "the same records draw the same bytes");
}

#[test]
fn the_loss_curve_takes_any_records() {
    let odd = |loss, gradient_norm| Record {
        loss,
        gradient_norm,
        learning_rate: 0.0,
        loss_quartiles: [None; 4],
        ..records(1).remove(0)
    };
    for records in [
        records(1),
        records(2),
        vec![odd(f32::NAN, f32::INFINITY)],
        vec![odd(0.0, 0.0), odd(1e-30, 1e30), odd(3e38, 1.0)],
        vec![odd(0.5, 0.5); 3],
    ] {
        let picture = image::load_from_memory(&loss_curve(&records)).unwrap();
        assert_eq!((picture.width(), picture.height()), (1000, 640));
    }
}

#[test]
fn a_grid_shows_the_digits_as_they_are() {
    let digits = Dataset::open("digits", &DataOptions::default()).unwrap();
    let mut images = vec![0.0; 64 * 64];
    digits.fill_batch(&(0..64).collect::<Vec<_>>(), &[], &mut images);
    let png = grid_png(&images, [64, 8, 8, 1], None);
    keep("digits.png", &png);
    let grid = image::load_from_memory(&png).unwrap().into_luma8();
    assert_eq!(grid.dimensions(), (402, 402));
    for (i, image) in images.chunks(64).enumerate() {
        for (pixel, &value) in image.iter().enumerate() {
            let x = 2 + i % 8 * 50 + pixel % 8 * 6;
            let y = 2 + i / 8 * 50 + pixel / 8 * 6;
            assert_eq!(grid.get_pixel(x as u32 + 5, y as u32).0, [to_byte(value)]);
        }
    }
}

/// Writes a picture to look at, where LANGEVIN_TEST_PICTURES names a folder.
fn keep(name: &str, png: &[u8]) {
    if let Some(folder) = std::env::var_os("LANGEVIN_TEST_PICTURES") {
        std::fs::write(std::path::Path::new(&folder).join(name), png).unwrap();
    }
}
