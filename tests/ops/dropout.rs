//! Dropout: masks from the counters, the same in both passes.

use langevin::Error;
use langevin::plan::{DType, Plan};
use langevin::random::{Purpose, image_keys, words};

use super::common::{Case, Input, Terms, values};
use super::noising::keys;

const LAYER: u32 = 3;

fn mask(n: usize, len: usize, p: f32) -> Vec<bool> {
    let mut w = vec![0; n * len];
    for (keys, w) in keys(n).chunks_exact(4).zip(w.chunks_exact_mut(len)) {
        words(keys.try_into().unwrap(), Purpose::Dropout, LAYER, 0, w);
    }
    w.iter().map(|&w| f64::from(w) >= f64::from(p) * 2f64.powi(32)).collect()
}

#[test]
fn dropout_keeps_the_elements_whose_word_is_large_in_both_passes() {
    for (n, len, p) in [(1, 1, 0.5), (3, 7, 0.1), (2, 1025, 0.5), (2, 8195, 0.25), (2, 64, 0.0)] {
        let inputs = [Input::image(&[n, len]), Input::words(&[n, 4], &keys(n))];
        let kept = mask(n, len, p);
        Case::new(&inputs, |plan, t| plan.dropout(t[0], t[1], p, LAYER).unwrap()).check(
            Terms { forward: 2, backward: 2 },
            |x| {
                let scale = 1.0 / (1.0 - f64::from(p));
                x[0].iter().zip(&kept).map(|(x, &k)| if k { x * scale } else { 0.0 }).collect()
            },
        );
    }
}

#[test]
fn dropout_drops_the_same_elements_in_the_gradient() {
    let (n, len) = (2, 1000);
    // Data and upstream gradient without zeros, so that zeros are the mask.
    let inputs = [Input::image(&[n, len]).map(|v| v + 2.0), Input::words(&[n, 4], &keys(n))];
    let outcome =
        Case::new(&inputs, |plan, t| plan.dropout(t[0], t[1], 0.3, LAYER).unwrap()).run(2, None);
    let gradient = outcome.gradients[0].as_ref().unwrap();
    for ((y, d_x), upstream) in outcome.output.iter().zip(gradient).zip(values(99, n * len)) {
        assert_eq!(*y == 0.0, *d_x == 0.0 || upstream == 0.0);
    }
}

#[test]
fn dropout_keeps_one_minus_p_of_the_elements() {
    let (n, len) = (4, 50_000);
    for p in [0.1f32, 0.5, 0.9] {
        let keys: Vec<u32> = (0..n).flat_map(|i| image_keys(9, i as u64)).collect();
        let inputs = [Input::image(&[n, len]).map(|_| 1.0).fixed(), Input::words(&[n, 4], &keys)];
        let outcome =
            Case::new(&inputs, |plan, t| plan.dropout(t[0], t[1], p, LAYER).unwrap()).run(1, None);
        let kept = outcome.output.iter().filter(|&&y| y != 0.0).count() as f64;
        let total = (n * len) as f64;
        let deviation = (total * f64::from(p) * (1.0 - f64::from(p))).sqrt();
        let expected = total * (1.0 - f64::from(p));
        assert!((kept - expected).abs() < 4.0 * deviation, "p = {p}: kept {kept} of {total}");
    }
}

#[test]
fn dropout_refuses_what_is_not_a_probability_below_one() {
    for p in [-0.1, 1.0, f32::NAN] {
        let mut plan = Plan::new();
        let x = plan.input("x", &[1, 4], DType::F32);
        let keys = plan.input("keys", &[1, 4], DType::U32);
        let refused = plan.dropout(x, keys, p, 0);
        assert!(matches!(refused, Err(Error::Config { .. })), "{p} was accepted");
    }
}
