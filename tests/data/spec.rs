use langevin::data::{DataOptions, Dataset, Spec};

use crate::{assert_refused, assert_says, open};

#[test]
fn an_unknown_spec_is_refused_with_the_list_of_specs() {
    for spec in ["", "mnist", "digits:x", "tar:x", "folder", "folder:", "idx:"] {
        let error = Spec::parse(spec).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{spec}");
        assert_says(&error, &["digits, idx:PATH, cifar10:DIR, folder:DIR, npz:FILE, points:NAME"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().to_str().unwrap();
    let error = Dataset::open(spec, &DataOptions::default()).unwrap_err();
    assert_says(&error, &[&format!("did you mean `folder:{spec}`?")]);
}

#[test]
fn a_path_that_does_not_exist_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nowhere");
    for kind in ["idx", "cifar10", "folder", "npz"] {
        assert_refused(open(kind, &path), &["cannot read", "nowhere"]);
    }
}

#[test]
fn options_out_of_range_name_their_key() {
    let open = |options| Dataset::open("digits", &options).unwrap_err();
    let default = DataOptions::default();
    let cases = [
        (open(DataOptions { size: Some([0, 8]), ..default }), "data.size"),
        (open(DataOptions { size: Some([8, 1 << 20]), ..default }), "data.size"),
        (open(DataOptions { channels: Some(2), ..default }), "data.channels"),
        (open(DataOptions { limit: Some(0), ..default }), "data.limit"),
    ];
    for (error, key) in cases {
        assert_eq!(error.exit_code(), 2);
        assert_says(&error, &[key]);
    }
}

#[test]
fn sets_that_cannot_fit_in_memory_are_refused_with_their_size() {
    let options =
        DataOptions { size: Some([32768, 32768]), channels: Some(3), ..Default::default() };
    let limited = DataOptions { limit: Some(1), size: Some([512, 512]), ..options };
    assert_eq!(Dataset::open("digits", &limited).unwrap().shape(), [1, 512, 512, 3]);
    // 5.8 TB; where an allocator promises even that, nothing can be shown.
    if Vec::<u8>::new().try_reserve_exact(1797 << 32).is_err() {
        let result = Dataset::open("digits", &DataOptions { ..options });
        assert_refused(result, &["1797 images of 32768x32768x3", "data.limit"]);
    }
}
