use langevin::data::{DataOptions, Dataset};

fn digits() -> Dataset {
    Dataset::open("digits", &DataOptions::default()).unwrap()
}

#[test]
fn digits_are_the_1797_published_images() {
    let digits = digits();
    assert_eq!(digits.shape(), [1797, 8, 8, 1]);
    assert_eq!((digits.levels(), digits.name.as_str()), (17, "digits"));
    // First image and sums of the table scikit-learn ships.
    assert_eq!(digits.image(0)[..16], [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]);
    let sum: u64 = (0..1797).flat_map(|i| digits.image(i)).map(|&v| u64::from(v)).sum();
    assert_eq!(sum, 561_718);
    assert_eq!(digits.labels().unwrap()[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(digits.classes().join(""), "0123456789");
    let statistics = digits.statistics();
    assert_eq!(statistics.class_counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    assert!((statistics.mean[0] - (2.0 * 4.884164579855314 / 16.0 - 1.0)).abs() < 1e-6);
    assert!((statistics.std[0] - 2.0 * 6.016787548672236 / 16.0).abs() < 1e-6);
}

#[test]
fn digits_fill_a_batch_from_minus_one_to_one() {
    let digits = digits();
    let mut out = vec![f32::NAN; 2 * 64];
    digits.fill_batch(&[0, 1796], &[], &mut out);
    for (i, &index) in [0, 1796].iter().enumerate() {
        for (&byte, &value) in digits.image(index).iter().zip(&out[i * 64..]) {
            assert_eq!(value, 2.0 * f32::from(byte) / 16.0 - 1.0);
        }
    }
    assert!(out.contains(&-1.0) && out.contains(&1.0));
}

#[test]
fn a_flip_mirrors_rows_and_keeps_channels_together() {
    let options = DataOptions { channels: Some(3), ..Default::default() };
    let colour = Dataset::open("digits", &options).unwrap();
    assert_eq!((colour.shape(), colour.levels()), ([1797, 8, 8, 3], 256));
    let (mut plain, mut mirrored) = (vec![0.0; 2 * 192], vec![0.0; 2 * 192]);
    colour.fill_batch(&[3, 4], &[], &mut plain);
    colour.fill_batch(&[3, 4], &[true, false], &mut mirrored);
    assert_eq!(plain[192..], mirrored[192..]);
    for y in 0..8 {
        for x in 0..8 {
            for c in 0..3 {
                assert_eq!(plain[(y * 8 + x) * 3 + c], mirrored[(y * 8 + 7 - x) * 3 + c]);
            }
        }
    }
    assert_ne!(plain[..192], mirrored[..192]);
}

#[test]
fn digits_can_be_limited_and_enlarged() {
    let options = DataOptions { size: Some([16, 12]), limit: Some(5), ..Default::default() };
    let some = Dataset::open("digits", &options).unwrap();
    assert_eq!(some.shape(), [5, 16, 12, 1]);
    assert_eq!(some.labels().unwrap(), [0, 1, 2, 3, 4]);
    // A white stroke on black stays one.
    assert!(some.image(0).iter().any(|&v| v > 200) && some.image(0).contains(&0));
}
