//! A data set in place of a network.

use langevin::backend::cpu::Pool;
use langevin::diffusion::empirical::nearest_two;

#[test]
fn a_copy_has_ratio_0_and_a_point_between_two_has_ratio_1() {
    let data = [0.0, 0.0, 4.0, 0.0, 4.0, 3.0];
    let samples = [4.0, 0.0, 2.0, 0.0, 1.0, 0.0];
    let found = nearest_two(&Pool::new(1), &samples, &data, 2).unwrap();
    assert_eq!(found.iter().map(|n| n.index).collect::<Vec<_>>(), [1, 0, 0]);
    assert_eq!(found.iter().map(|n| n.second).collect::<Vec<_>>(), [2, 1, 1]);
    assert_eq!(found.iter().map(|n| n.ratio()).collect::<Vec<_>>(), [0.0, 1.0, 1.0 / 3.0]);
    let twice = nearest_two(&Pool::new(1), &[1.0], &[1.0, 1.0], 1).unwrap();
    assert_eq!(twice[0].ratio(), 1.0);
    let alone = nearest_two(&Pool::new(1), &[1.5], &[1.0], 1).unwrap();
    assert_eq!((alone[0].distance, alone[0].ratio()), (0.5, 0.0));
}

#[test]
fn images_that_do_not_fit_are_refused() {
    let pool = Pool::new(1);
    for (samples, data) in [(3, 2), (2, 3), (0, 2), (2, 0)] {
        let error = nearest_two(&pool, &vec![0.0; samples], &vec![0.0; data], 2).unwrap_err();
        assert!(error.to_string().contains("2 elements"), "{error}");
    }
}
