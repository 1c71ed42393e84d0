//! Activations, sums and scalings, elementwise.

use super::common::{Case, Input, Terms};

const TERMS: Terms = Terms { forward: 1, backward: 2 };

#[test]
fn add_matches_f64_in_both_passes() {
    for len in [1, 7, 64, 129] {
        let inputs = [Input::image(&[2, len]), Input::image(&[2, len]).map(|v| 1.0 - v)];
        Case::new(&inputs, |p, t| p.add(t[0], t[1], 0.75).unwrap())
            .check(TERMS, |x| x[0].iter().zip(&x[1]).map(|(a, b)| (a + b) * 0.75).collect());
    }
}
