//! Damaged files: an error in words or the same values, never others and never
//! a panic.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use langevin::checkpoint::tensors;
use langevin::checkpoint::weights::{self, Weights};
use langevin::plan::Parameters;
use safetensors::tensor::{Dtype, TensorView};

use crate::support::*;

fn load(path: &Path, parameters: &Parameters) -> langevin::Result<Vec<u32>> {
    let mut arena = vec![0.0; parameters.arena_len()];
    Weights::open(path)?.load_into(parameters, &mut arena)?;
    Ok(bits(&arena))
}

/// Flips one bit at each of many positions (all of the first `dense` bytes, every
/// `stride`-th after them) and returns how many flips were noticed, of how many.
fn flip_everywhere(
    path: &Path,
    dense: usize,
    stride: usize,
    parameters: &Parameters,
    expected: Option<&[u32]>,
) -> (usize, usize) {
    let whole = fs::read(path).unwrap();
    let positions = (0..dense.min(whole.len())).chain((dense..whole.len()).step_by(stride));
    let (mut noticed, mut flips) = (0, 0);
    for at in positions {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(path, &bytes).unwrap();
        flips += 1;
        match load(path, parameters) {
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(&*path.to_string_lossy()), "byte {at}: {text}");
                noticed += 1;
            }
            Ok(values) => {
                if let Some(expected) = expected {
                    assert!(values == expected, "byte {at}: other values were loaded");
                }
            }
        }
    }
    fs::write(path, &whole).unwrap();
    (noticed, flips)
}

#[test]
fn a_flipped_bit_in_a_file_of_ours_never_changes_a_value() {
    let parameters = parameters();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    weights::save(&path, &parameters, &arena(&parameters, 1), &BTreeMap::new()).unwrap();
    let expected = load(&path, &parameters).unwrap();
    let (noticed, flips) = flip_everywhere(&path, usize::MAX, 1, &parameters, Some(&expected));
    // Unnoticed may be only flips of the checksum's own name (its file then looks
    // like another program's) and of the padding behind the header.
    assert!(flips - noticed <= 30, "{noticed} of {flips}");
}

#[test]
fn a_flipped_bit_in_a_pytorch_file_never_changes_a_value() {
    let parameters = golden_parameters();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.bin");
    fs::copy(golden("pipeline_bin/unet/diffusion_pytorch_model.bin"), &path).unwrap();
    let expected = load(&path, &parameters).unwrap();
    let (noticed, flips) = flip_everywhere(&path, 300, 37, &parameters, Some(&expected));
    assert!(noticed > flips / 3, "{noticed} of {flips}");
}

#[test]
fn a_flipped_bit_in_a_foreign_file_is_found_where_structure_shows_it() {
    let parameters = parameters();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let zeros = vec![0; 4 * 1000];
    let views = parameters.entries.iter().map(|p| {
        let view = TensorView::new(Dtype::F32, p.disk_shape.clone(), &zeros[..4 * p.len()]);
        (&p.name, view.unwrap())
    });
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    fs::write(&path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    let bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (noticed, flips) = flip_everywhere(&path, header, 1 << 30, &parameters, None);
    // `{"__metadata__":{"format":"pt"},` may change unseen, and blanks at the end.
    assert!(flips - noticed <= 45, "{noticed} of {flips}");
}

#[test]
fn every_truncation_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("w.safetensors");
    let small = parameters();
    weights::save(&ours, &small, &arena(&small, 1), &BTreeMap::new()).unwrap();
    let foreign = folder.path().join("f.safetensors");
    fs::copy(golden("reference.safetensors"), &foreign).unwrap();
    let torch = folder.path().join("w.bin");
    fs::copy(golden("pipeline_bin/unet/diffusion_pytorch_model.bin"), &torch).unwrap();
    let large = golden_parameters();
    for (path, parameters, stride) in
        [(&ours, &small, 1), (&foreign, &large, 97), (&torch, &large, 997)]
    {
        let whole = fs::read(path).unwrap();
        for end in (0..whole.len()).step_by(stride).chain([whole.len() - 1]) {
            fs::write(path, &whole[..end]).unwrap();
            let error = load(path, parameters).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(&*path.to_string_lossy()), "{end} bytes: {error}");
        }
        // And bytes too many.
        let mut longer = whole.clone();
        longer.extend([0; 16]);
        fs::write(path, longer).unwrap();
        assert!(path == &torch || load(path, parameters).is_err());
    }
}

#[test]
fn headers_that_lie_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.safetensors");
    let one = |header: &str| raw_safetensors(header, &[0; 8]);
    let mut huge = one(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "the file is empty"),
        (vec![1, 2, 3], "ends after 3 bytes"),
        (huge, "claims 18446744073709551615 bytes"),
        (one(""), "EOF"),
        (one("[]"), "invalid"),
        (
            one(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            ),
            "`a` stands twice",
        ),
        (one(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#), "invalid shape"),
        (one(r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,8]}}"#), "invalid shape"),
        (one(r#"{"a":{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}}"#), "unknown variant"),
        (one(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#), "invalid offset"),
        (one(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#), "shorter or longer"),
        (one(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#), "shorter or longer"),
        (
            one(r#"{"a":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,8]}}"#),
            "overflow",
        ),
        (
            one(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            ),
            "invalid offset",
        ),
        (one("\u{fffd}").into_iter().map(|b| if b > 0x80 { 0xff } else { b }).collect(), "UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n".to_vec(), "git lfs pull"),
        (b"PK\x03\x04 and more".to_vec(), "zip archive"),
        (b"<!DOCTYPE html><html></html>".to_vec(), "web page"),
    ];
    for (bytes, part) in cases {
        fs::write(&path, bytes).unwrap();
        let error = tensors::read(&path).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("t.safetensors"), "{part:?} in {error}");
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = tensors::read(&path).unwrap_err().to_string();
    assert!(error.contains("is a folder"), "{error}");
}
