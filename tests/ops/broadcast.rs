//! One vector an image, added to every position or multiplied with it.

use super::common::{Case, Input, Terms};

#[test]
fn add_per_image_matches_f64_in_both_passes() {
    for (n, h, w, c) in
        [(1, 1, 1, 1), (3, 5, 7, 3), (2, 9, 8, 33), (2, 16, 17, 64), (1, 3, 3, 1031)]
    {
        let inputs = [Input::image(&[n, h, w, c]), Input::image(&[n, c])];
        let terms = Terms { forward: 1, backward: h * w };
        Case::new(&inputs, |p, t| p.add_per_image(t[0], t[1]).unwrap()).check(terms, |x| {
            let image = h * w * c;
            let e = |i: usize| x[1][i / image * c + i % c];
            x[0].iter().enumerate().map(|(i, v)| v + e(i)).collect()
        });
    }
}

#[test]
fn scale_per_image_matches_f64_in_both_passes() {
    for (n, h, w, c) in [(1, 1, 1, 1), (3, 5, 7, 3), (2, 9, 8, 33), (2, 4, 4, 64)] {
        let inputs = [Input::image(&[n, h, w, c]), Input::image(&[n, c])];
        let terms = Terms { forward: 1, backward: h * w };
        Case::new(&inputs, |p, t| p.scale_per_image(t[0], t[1]).unwrap()).check(terms, |x| {
            let image = h * w * c;
            let e = |i: usize| x[1][i / image * c + i % c];
            x[0].iter().enumerate().map(|(i, v)| v * e(i)).collect()
        });
    }
}
