//! Concatenation along channels.

use super::common::{Case, Input, Terms};

#[test]
fn concat_matches_f64_in_both_passes() {
    for (n, s, a, b) in [(1, 1, 1, 1), (2, 3, 5, 2), (3, 20, 16, 32), (2, 1000, 7, 13)] {
        let inputs = [Input::image(&[n, s, a]), Input::image(&[n, s, b])];
        let terms = Terms { forward: 1, backward: 1 };
        Case::new(&inputs, |p, t| p.concat(t[0], t[1]).unwrap()).check(terms, |x| {
            x[0].chunks(a).zip(x[1].chunks(b)).flat_map(|(a, b)| [a, b].concat()).collect()
        });
    }
}
