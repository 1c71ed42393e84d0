//! Random numbers: the same bits at every width, for ever, and normal.

use langevin::Error;
use langevin::backend::cpu::isa::Isa;
use langevin::random::{
    HostRng, Purpose, check_images, fill_normal, fill_normal_on, fill_uniform, fill_uniform_f64,
    image_keys, normal, philox4x32, uniform, words,
};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

const KEYS: [u32; 4] = [0x89ab_cdef, 0x0123_4567, 0x7654_3210, 0x0065_4321];

/// `kat_vectors` of Random123 1.14, philox4x32 with 10 rounds.
#[test]
fn philox_gives_the_known_answers_of_random123() {
    let cases = [
        ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
        (
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        ),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(philox4x32(counter, key), expected);
    }
}

#[test]
fn words_are_laid_out_as_documented_whatever_part_is_asked_for() {
    let (purpose, draw) = (Purpose::Dropout, 77);
    let expected = |e: u64| {
        let counter = [(e / 4) as u32, draw, KEYS[2], (purpose as u32) << 24 | KEYS[3]];
        philox4x32(counter, [KEYS[0], KEYS[1]])[(e % 4) as usize]
    };
    // Around the vectors' 16 and 32 elements, and at the end of the counters.
    for first in [0, 1, 2, 3, 4, 30, 1 << 20, (1 << 34) - 70] {
        for len in [0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 67] {
            let mut out = vec![0; len];
            words(KEYS, purpose, draw, first, &mut out);
            let expected: Vec<u32> = (first..).take(len).map(expected).collect();
            assert_eq!(out, expected, "{len} words from {first}");
        }
    }
}

#[test]
fn normals_and_uniforms_are_made_of_their_own_words() {
    let len = 130;
    let mut w = vec![0; 2 * len];
    words(KEYS, Purpose::Probe, 5, 0, &mut w);
    for first in [0, 1, 2, 3, 6] {
        let mut z = vec![0.0; len - first];
        fill_normal(KEYS, Purpose::Probe, 5, first as u64, &mut z);
        let mut u = z.clone();
        fill_uniform(KEYS, Purpose::Probe, 5, first as u64, &mut u);
        let mut u64s = vec![0.0; len - first];
        fill_uniform_f64(KEYS, Purpose::Probe, 5, first as u64, &mut u64s);
        for e in first..len {
            let pair = normal::pair(w[e / 2 * 2], w[e / 2 * 2 + 1]);
            assert_eq!(z[e - first].to_bits(), pair[e % 2].to_bits());
            let expected = (f64::from(w[e] >> 9) + 0.5) / 2f64.powi(23);
            assert_eq!(f64::from(u[e - first]), expected);
            let wide = u64::from(w[2 * e]) | u64::from(w[2 * e + 1]) << 32;
            assert_eq!(u64s[e - first], ((wide >> 12) as f64 + 0.5) / 2f64.powi(52));
        }
    }
    let mut first = [0.0];
    fill_uniform_f64(KEYS, Purpose::Probe, 5, 0, &mut first);
    assert_eq!(uniform(KEYS, Purpose::Probe, 5), first[0]);
}

#[test]
fn uniforms_are_inside_the_open_interval() {
    let largest = ((u32::MAX >> 9) as f32 + 0.5) * (1.0 / (1 << 23) as f32);
    assert!(largest < 1.0);
    let mut u = vec![0.0; 1 << 16];
    fill_uniform(KEYS, Purpose::Init, 0, 0, &mut u);
    assert!(u.iter().all(|&u| u > 0.0 && u < 1.0));
    let mean = u.iter().map(|&u| f64::from(u)).sum::<f64>() / u.len() as f64;
    assert!((mean - 0.5).abs() < 4.0 / (12.0 * u.len() as f64).sqrt());
}

#[test]
fn normals_have_the_same_bits_with_all_instructions() {
    let len = (1 << 20) + 13;
    for (draw, first) in [(0, 0), (1, 3), (u32::MAX, 1 << 33)] {
        let normals = |isa: Isa| {
            let mut z = vec![0.0; len];
            fill_normal_on(isa, KEYS, Purpose::SampleStep, draw, first, &mut z);
            z
        };
        let scalar = normals(Isa::Portable);
        for isa in Isa::available() {
            let same = normals(isa).iter().zip(&scalar).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{isa:?} differs from scalar code");
        }
    }
}

/// Words at which something happens: both ends, the edges of the logarithm's
/// mantissa, the octants.
const CORNERS: [(u32, u32, [u32; 2]); 16] = [
    (0x00000000, 0x00000000, [0x40d87047, 0x00000000]),
    (0x00000001, 0x1fffffff, [0x4095531c, 0x4095531c]),
    (0x2aaaaaaa, 0x20000000, [0x3fab5623, 0xbfab5623]),
    (0x2aaaaaab, 0x3fffffff, [0x3ff24e6e, 0xb13e4e96]),
    (0x55555555, 0x40000000, [0x00000000, 0x3fbdbc22]),
    (0x55555556, 0x5fffffff, [0x3f8629af, 0x3f8629af]),
    (0x7fffffff, 0x60000000, [0xbf55224c, 0x3f55224c]),
    (0x80000000, 0x7fffffff, [0xb0ecbb7a, 0x3f96b55f]),
    (0xaaaaaaaa, 0x80000000, [0xbf668841, 0x00000000]),
    (0xaaaaaaab, 0x9fffffff, [0xbf2302cb, 0x3f2302cb]),
    (0xffffff7f, 0xa0000000, [0xb97fffff, 0xb97fffff]),
    (0xffffff80, 0xbfffffff, [0x00000000, 0x00000000]),
    (0xffffffff, 0xc0000000, [0x80000000, 0x00000000]),
    (0x12345678, 0xdfffffff, [0x3fd01d19, 0xbfd01d19]),
    (0x9abcdef0, 0xe0000000, [0xbf35a457, 0xbf35a457]),
    (0xdeadbeef, 0xffffffff, [0xb0545d1c, 0xbf0731e7]),
];

#[test]
fn normals_keep_their_bits() {
    for (radius, angle, expected) in CORNERS {
        let found = normal::pair(radius, angle).map(f32::to_bits);
        assert_eq!(found, expected, "pair({radius:#010x}, {angle:#010x}) is {found:#010x?}");
    }
    let mut z = vec![0f32; 1 << 20];
    fill_normal(image_keys(3, 17), Purpose::SampleStart, 0, 0, &mut z);
    let first: Vec<u32> = z[..8].iter().map(|z| z.to_bits()).collect();
    let sum = z.iter().fold(0u32, |sum, z| sum.rotate_left(5) ^ z.to_bits());
    assert_eq!(
        first,
        [
            0xbfc58ea5, 0xbf6d6e47, 0xbfd12282, 0xbfe35808, 0xbef6f654, 0xbf8d24a7, 0xbf481af4,
            0x3fa46906
        ],
        "{first:#010x?}"
    );
    assert_eq!(sum, 0x479c2c11, "{sum:#010x}");
}

/// Box-Muller in f64 on the same words, and the radius.
fn exact(radius: u32, angle: u32) -> ([f64; 2], f64) {
    // ln(u) from the side where it is exact.
    let complement = (f64::from(!radius) + 0.5) / 2f64.powi(32);
    let r = match radius >> 31 {
        0 => (-2.0 * ((f64::from(radius) + 0.5) / 2f64.powi(32)).ln()).sqrt(),
        _ => (-2.0 * (-complement).ln_1p()).sqrt(),
    };
    let t = f64::from((angle << 2) as i32) / 2f64.powi(32) * std::f64::consts::FRAC_PI_2;
    let (sin, cos) = t.sin_cos();
    let cos = if angle >> 31 == 1 { -cos } else { cos };
    let z = if angle >> 30 & 1 == 0 { [r * cos, r * sin] } else { [r * sin, r * cos] };
    (z, r)
}

#[test]
fn normals_are_those_of_box_muller_to_the_documented_error() {
    let mut w = vec![0; 1 << 20];
    words(KEYS, Purpose::Probe, 0, 0, &mut w);
    let corners = CORNERS.iter().flat_map(|&(radius, angle, _)| [radius, angle]);
    let (mut squares, mut count) = (0.0, 0);
    for pair in w.iter().copied().chain(corners).collect::<Vec<_>>().chunks_exact(2) {
        let found = normal::pair(pair[0], pair[1]);
        let (expected, r) = exact(pair[0], pair[1]);
        for (found, expected) in found.into_iter().zip(expected) {
            let error = (f64::from(found) - expected).abs();
            // Below r = 0.05 the spacing of u under 1 shows, 2^-24: r^2 is off by
            // as much.
            let allowed =
                if r > 0.05 { 8e-7 } else { 1.01 * (2f64.powi(-24) / r).min(2f64.powi(-12)) };
            assert!(error <= allowed, "pair({:#x}, {:#x}): off by {error:e}", pair[0], pair[1]);
            squares += if r > 0.05 { error * error } else { 0.0 };
            count += 1;
        }
    }
    let deviation = (squares / f64::from(count)).sqrt();
    assert!(deviation < 7.5e-8, "root mean square error {deviation:e}");
}

#[test]
fn the_largest_normal_is_that_of_the_smallest_uniform() {
    let largest = normal::pair(0, 0)[0];
    assert_eq!(largest, 6.763_705_7);
    assert_eq!(normal::pair(0, 0x8000_0000)[0], -largest);
    for radius in [u32::MAX, u32::MAX - 127] {
        assert_eq!(normal::pair(radius, 12345)[0].abs(), 0.0);
    }
}

const CELLS_PER_UNIT: usize = 64;
const HALF_WIDTH: usize = 7;

/// Probability of each cell of width 1/64 in [-7, 7], by Boole's rule.
fn cell_probabilities() -> Vec<f64> {
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let h = 1.0 / CELLS_PER_UNIT as f64;
    (0..2 * HALF_WIDTH * CELLS_PER_UNIT)
        .map(|i| {
            let f = |k: f64| density(-(HALF_WIDTH as f64) + h * (i as f64 + k / 4.0));
            (7.0 * (f(0.0) + f(4.0)) + 32.0 * (f(1.0) + f(3.0)) + 12.0 * f(2.0)) * h / 90.0
        })
        .collect()
}

#[test]
fn sixteen_million_normals_have_the_moments_and_the_distribution_of_normals() {
    let images = 16;
    let per_image = 1 << 20;
    let n = f64::from(images * per_image);
    let mut z = vec![0f32; per_image as usize];
    let mut counts = vec![0u64; 2 * HALF_WIDTH * CELLS_PER_UNIT];
    let mut moments = [0f64; 4];
    for image in 0..images {
        fill_normal(image_keys(1, image as u64), Purpose::TrainNoise, 0, 0, &mut z);
        for &z in &z {
            let z = f64::from(z);
            let z2 = z * z;
            for (m, v) in moments.iter_mut().zip([z, z2, z2 * z, z2 * z2]) {
                *m += v;
            }
            counts[((z + HALF_WIDTH as f64) * CELLS_PER_UNIT as f64) as usize] += 1;
        }
    }
    // Mean, variance of the sample moments of a normal: E z^2k - (E z^k)^2.
    for (k, (expected, variance)) in
        [(0.0, 1.0), (1.0, 2.0), (0.0, 15.0), (3.0, 96.0f64)].into_iter().enumerate()
    {
        let found = moments[k] / n;
        let deviation = (variance / n).sqrt();
        let off = (found - expected) / deviation;
        assert!(off.abs() < 4.0, "moment {}: {found}, {off:.1} deviations off", k + 1);
    }

    let probabilities = cell_probabilities();
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-11);
    let (mut chi_square, mut freedom, mut largest) = (0.0, -1.0, 0f64);
    let (mut expected_below, mut found_below) = (0.0, 0.0);
    let (mut expected_rare, mut found_rare) = (0.0, 0.0);
    for (&p, &count) in probabilities.iter().zip(&counts) {
        let (expected, found) = (p * n, count as f64);
        expected_below += expected;
        found_below += found;
        largest = largest.max((expected_below - found_below).abs() / n);
        if expected < 25.0 {
            expected_rare += expected;
            found_rare += found;
        } else {
            chi_square += (found - expected).powi(2) / expected;
            freedom += 1.0;
        }
    }
    chi_square += (found_rare - expected_rare).powi(2) / expected_rare;
    freedom += 1.0;
    let off = (chi_square - freedom) / (2.0f64 * freedom).sqrt();
    assert!(off.abs() < 4.0, "chi square {chi_square:.1} at {freedom} degrees of freedom");
    // Kolmogorov-Smirnov: 1.95 is exceeded once in a thousand times.
    let ks = largest * n.sqrt();
    assert!(ks < 1.95, "Kolmogorov-Smirnov {ks:.2}");
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let product = |a: &[f64], ma: f64, b: &[f64], mb: f64| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - ma) * (b - mb)).sum()
    };
    product(a, mean_a, b, mean_b)
        / (product(a, mean_a, a, mean_a) * product(b, mean_b, b, mean_b)).sqrt()
}

#[test]
fn neighbouring_elements_draws_purposes_images_and_seeds_are_uncorrelated() {
    let len = 1 << 18;
    let normals = |seed: u64, image: u64, purpose: Purpose, draw: u32| -> Vec<f64> {
        let mut z = vec![0f32; len];
        fill_normal(image_keys(seed, image), purpose, draw, 0, &mut z);
        z.iter().map(|&z| f64::from(z)).collect()
    };
    let base = normals(1, 6, Purpose::SampleStep, 9);
    let others = [
        ("draw + 1", normals(1, 6, Purpose::SampleStep, 10)),
        ("purpose + 1", normals(1, 6, Purpose::TrainNoise, 9)),
        ("image + 1", normals(1, 7, Purpose::SampleStep, 9)),
        ("image + 2^32", normals(1, 6 + (1 << 32), Purpose::SampleStep, 9)),
        ("seed + 1", normals(2, 6, Purpose::SampleStep, 9)),
        ("seed + 2^32", normals(1 + (1 << 32), 6, Purpose::SampleStep, 9)),
    ];
    let squares = |z: &[f64]| -> Vec<f64> { z.iter().map(|z| z * z).collect() };
    let check = |what: &str, a: &[f64], b: &[f64]| {
        let bound = 4.0 / (a.len() as f64).sqrt();
        let plain = correlation(a, b);
        assert!(plain.abs() < bound, "{what}: {plain}");
        let squared = correlation(&squares(a), &squares(b));
        assert!(squared.abs() < bound, "squares, {what}: {squared}");
        assert!(a != b, "{what}: the same numbers");
    };
    for (what, other) in &others {
        check(what, &base, other);
    }
    for lag in 1..=8 {
        check(&format!("element + {lag}"), &base[lag..], &base[..len - lag]);
    }
    // The two normals of a pair share their radius.
    let (even, odd): (Vec<f64>, Vec<f64>) = base.chunks_exact(2).map(|p| (p[0], p[1])).unzip();
    check("the pair", &even, &odd);
}

#[test]
fn images_without_a_counter_are_refused() {
    let end = 1u64 << 56;
    assert!(check_images(0, 1).is_ok());
    assert!(check_images(end - 1, 1).is_ok());
    for (first, count) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (0, u64::MAX)] {
        let refused = check_images(first, count);
        assert!(matches!(refused, Err(Error::Usage(_))), "{first} + {count} was accepted");
    }
    assert_eq!(image_keys(0x1_0000_0002, end - 1), [2, 1, u32::MAX, (1 << 24) - 1]);
}

#[test]
fn the_host_generator_gives_out_the_words_of_its_stream() {
    let (seed, stream) = (99, 1 << 40);
    let mut expected = vec![0; 40];
    words(image_keys(seed, stream), Purpose::Shuffle, 0, 0, &mut expected);
    let mut rng = HostRng::new(seed, Purpose::Shuffle, stream);
    let found: Vec<u32> = (0..40).map(|_| rng.next_u32()).collect();
    assert_eq!(found, expected);
    assert_eq!(rng.position(), 40);

    let mut rng = HostRng::new(seed, Purpose::Shuffle, stream);
    assert_eq!(rng.next_u64(), u64::from(expected[0]) | u64::from(expected[1]) << 32);
    let mut bytes = [0; 6];
    rng.fill_bytes(&mut bytes);
    assert_eq!(bytes[..4], expected[2].to_le_bytes());
    assert_eq!(bytes[4..], expected[3].to_le_bytes()[..2]);
    let mut u = [0.0];
    fill_uniform_f64(image_keys(seed, stream), Purpose::Shuffle, 0, 2, &mut u);
    assert_eq!(rng.uniform(), u[0]);
}

#[test]
fn the_host_generator_goes_on_where_it_was_put() {
    let mut rng = HostRng::new(5, Purpose::TrainTime, 0);
    let all: Vec<u32> = (0..30).map(|_| rng.next_u32()).collect();
    for position in [0, 1, 4, 7, 8, 29] {
        let mut again = HostRng::new(5, Purpose::TrainTime, 0);
        again.seek(position);
        let rest: Vec<u32> = (position..30).map(|_| again.next_u32()).collect();
        assert_eq!(rest, all[position as usize..]);
    }
    // Block 2^32 is the first of draw 1.
    let mut far = HostRng::new(5, Purpose::TrainTime, 0);
    far.seek(4 << 32);
    let mut expected = [0];
    words(image_keys(5, 0), Purpose::TrainTime, 1, 0, &mut expected);
    assert_eq!(far.next_u32(), expected[0]);
}

#[test]
fn rand_shuffles_and_draws_from_the_host_generator() {
    let shuffled = |stream: u64| {
        let mut order: Vec<usize> = (0..100).collect();
        order.shuffle(&mut HostRng::new(1, Purpose::Shuffle, stream));
        order
    };
    assert_eq!(shuffled(3), shuffled(3));
    assert_ne!(shuffled(3), shuffled(4));
    let mut sorted = shuffled(3);
    sorted.sort_unstable();
    assert!(sorted.iter().copied().eq(0..100));
    let mut rng = HostRng::new(1, Purpose::TrainTime, 0);
    assert!((0..1000).all(|_| rng.random_range(0..10) < 10));
}
