//! Points in the plane: moments, reproducibility, SPECs.

use langevin::data::points::{Points, Shape};
use langevin::data::{DataOptions, Dataset, Spec};

use crate::assert_says;

fn open(spec: &str) -> Dataset {
    Dataset::open(spec, &DataOptions::default()).expect(spec)
}

#[test]
fn every_set_is_centred_and_of_unit_scale() {
    for shape in Shape::ALL {
        let data = open(&format!("points:{}", shape.name()));
        assert_eq!(data.shape(), [10_000, 1, 1, 2]);
        let s = data.statistics();
        // Standard errors of a mean are 0.01; the noise adds at most 0.01.
        assert!(s.mean.iter().all(|m| m.abs() < 0.04), "{shape:?}: {s:?}");
        let scale = s.std.iter().map(|s| s * s).sum::<f64>() / 2.0;
        assert!((scale - 1.0).abs() < 0.04, "{shape:?}: {s:?}");
        let most = data.first_values(10_000).iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(most < 3.0, "{shape:?} reaches {most}");
    }
}

#[test]
fn a_point_depends_on_its_seed_and_index_alone() {
    let all = open("points:spiral").first_values(10_000);
    assert_eq!(open("points:spiral:0:50").first_values(50), all[..100]);
    let limited = DataOptions { limit: Some(7), ..DataOptions::default() };
    let few = Dataset::open("points:spiral", &limited).expect("valid");
    assert_eq!(few.first_values(10), all[..14]);
    let other = open("points:spiral:1").first_values(10_000);
    assert!(other.iter().zip(&all).all(|(a, b)| a != b), "another seed, other points");
}

#[test]
fn points_lie_where_their_set_says() {
    let of = |shape| Points { shape, seed: 3, count: 2000 }.coordinates();
    let side = (4.0f32 / 3.0).sqrt();
    for p in of(Shape::Checkerboard).chunks_exact(2) {
        let cell = |v: f32| (v * side + 2.0).floor() as i32;
        assert_eq!((cell(p[0]) + cell(p[1])) % 2, 0, "{p:?} lies on a light field");
    }
    let mut modes = [0; 8];
    for p in of(Shape::Gaussians8).chunks_exact(2) {
        let angle = p[1].atan2(p[0]) / (std::f32::consts::PI / 4.0);
        modes[(angle.round() as i32).rem_euclid(8) as usize] += 1;
        assert!((p[0].hypot(p[1]) - 2f32.sqrt()).abs() < 0.5, "{p:?}");
    }
    assert!(modes.iter().all(|&n| (180..320).contains(&n)), "{modes:?}");
}

#[test]
fn wrong_points_are_refused_with_the_names_there_are() {
    for spec in
        ["points:", "points:moon", "points:moons:x", "points:moons:1:0", "points:moons:1:2:3"]
    {
        let error = Spec::parse(spec).expect_err(spec);
        assert_eq!(error.exit_code(), 2, "{spec}");
        assert_says(&error, &["swissroll, moons, gaussians8, checkerboard, spiral"]);
    }
    let sized = DataOptions { size: Some([8, 8]), ..DataOptions::default() };
    let error = Dataset::open("points:moons", &sized).expect_err("points have no size");
    assert_says(&error, &["data.size"]);
}
