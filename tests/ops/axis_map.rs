//! `axis_map`.

use super::common::{Case, Input, Terms};

#[test]
fn axis_map_matches_f64_along_every_axis_and_for_odd_sizes() {
    for (shape, axis, to) in [
        (vec![2, 5, 7, 3], 1, 4),
        (vec![2, 5, 7, 3], 2, 9),
        (vec![3, 1, 1, 1], 2, 1),
        (vec![1, 17, 2, 33], 1, 1),
        (vec![2, 6], 1, 2),
    ] {
        let from = shape[axis];
        let outer: usize = shape[..axis].iter().product();
        let inner: usize = shape[axis + 1..].iter().product();
        // A zero of the matrix is left out, not multiplied.
        let matrix = Input::parameter(&[to, from]).map(|v| if v > 0.8 { 0.0 } else { v }).fixed();
        let case = Case::new(&[Input::image(&shape), matrix], |p, t| {
            p.axis_map(t[0], t[1], axis).unwrap()
        });
        case.check(Terms { forward: from, backward: to }, |x| {
            let mut y = vec![0.0; outer * to * inner];
            for (o, j, k, i) in quadruples(outer, to, from, inner) {
                y[(o * to + j) * inner + i] +=
                    x[1][j * from + k] * x[0][(o * from + k) * inner + i];
            }
            y
        });
    }
}

/// All quadruples below the four limits.
fn quadruples(
    a: usize,
    b: usize,
    c: usize,
    d: usize,
) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..a * b * c * d).map(move |i| (i / (b * c * d), i / (c * d) % b, i / d % c, i % d))
}
