use langevin::data::Order;

#[test]
fn every_epoch_is_a_different_permutation_of_all_images() {
    let mut order = Order::new(101, 7);
    let mut epochs = Vec::new();
    for epoch in 0..3 {
        let mut indices = vec![0; 101];
        order.fill(epoch * 101, &mut indices);
        assert_eq!(order.at(epoch * 101 + 100).0, epoch);
        epochs.push(indices.clone());
        indices.sort();
        assert_eq!(indices, (0..101).collect::<Vec<_>>());
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    let mut other = vec![0; 101];
    Order::new(101, 8).fill(0, &mut other);
    assert_ne!(other, epochs[0], "the seed changes the order");
}

#[test]
fn any_position_can_be_asked_for_in_any_order() {
    let mut forward = Order::new(13, 1);
    let expected: Vec<_> = (0..100).map(|position| forward.at(position)).collect();
    let mut order = Order::new(13, 1);
    for position in (0..100).rev() {
        assert_eq!(order.at(position), expected[position as usize]);
    }
    // A batch that reaches over the end of an epoch, from a fresh start.
    let mut batch = [0; 10];
    Order::new(13, 1).fill(8, &mut batch);
    assert!(batch.iter().zip(&expected[8..]).all(|(index, (_, e))| index == e));
}

#[test]
fn flips_are_a_fair_coin_of_the_position() {
    let order = Order::new(10, 3);
    let flips: Vec<bool> = (0..4000).map(|position| order.flip(position)).collect();
    let mirrored = flips.iter().filter(|&&flip| flip).count();
    assert!((1850..2150).contains(&mirrored), "{mirrored} of 4000");
    assert!((0..4000).all(|p| Order::new(99, 3).flip(p) == flips[p as usize]));
    assert!((0..4000).any(|p| Order::new(10, 4).flip(p) != flips[p as usize]));
    // The same image is seen both ways in the course of the epochs.
    assert!((0..20).any(|epoch| flips[epoch * 10]) && (0..20).any(|epoch| !flips[epoch * 10]));
}

#[test]
fn the_order_stays_what_it_was_so_that_old_runs_resume() {
    // A change here, by a new version of rand say, breaks resuming.
    let mut order = Order::new(10, 0);
    let images: Vec<usize> = (0..20).map(|position| order.at(position).1).collect();
    assert_eq!(images, [9, 8, 4, 3, 1, 6, 0, 2, 5, 7, 2, 3, 5, 1, 8, 0, 4, 7, 6, 9]);
    let flips: Vec<u8> = (0..12).map(|position| order.flip(position).into()).collect();
    assert_eq!(flips, [1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]);
}
