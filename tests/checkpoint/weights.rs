//! Weights in every form, against golden files that Python wrote.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use langevin::checkpoint::format::Float;
use langevin::checkpoint::weights::{self, Report, Weights};
use langevin::plan::{DiskLayout, Init, Parameters, Plan};
use safetensors::tensor::{Dtype, TensorView};

use crate::support::*;

fn load(path: &Path, parameters: &Parameters) -> langevin::Result<(Vec<f32>, Report)> {
    // Loading must overwrite everything.
    let mut arena = vec![f32::NAN; parameters.arena_len()];
    let report = Weights::open(path)?.load_into(parameters, &mut arena)?;
    Ok((arena, report))
}

/// A network of `conv_in.bias [4]` alone.
fn bias() -> Parameters {
    let mut plan = Plan::new();
    plan.parameter("conv_in.bias", &[4], DiskLayout::Same, Init::Constant(0.0), true);
    plan.parameters
}

#[test]
fn every_form_holds_the_reference() {
    let parameters = golden_parameters();
    let expected = bits(&golden_arena(&parameters));
    for (name, float, files) in [
        ("reference.safetensors", Float::F32, 1),
        ("flat_fp16", Float::F16, 1),
        ("bf16", Float::BF16, 1),
        ("sharded", Float::F16, 4),
        ("pipeline_bin/unet", Float::F16, 1),
    ] {
        let (arena, report) = load(&golden(name), &parameters).unwrap();
        assert_eq!(bits(&arena), expected, "{name}");
        assert_eq!(report.types, BTreeMap::from([(float, parameters.entries.len())]), "{name}");
        assert_eq!((report.tensors, report.files), (parameters.entries.len(), files), "{name}");
    }
}

#[test]
fn legacy_attention_names_are_renamed_and_squeezed() {
    let parameters = golden_parameters();
    let (_, report) = load(&golden("pipeline_bin/unet"), &parameters).unwrap();
    let attention = parameters.entries.iter().filter(|p| p.name.contains(".to_")).map(|p| &p.name);
    let mut renamed: Vec<_> = report.renamed.iter().map(|(_, to)| to).collect();
    renamed.sort();
    let mut expected: Vec<_> = attention.collect();
    expected.sort();
    assert_eq!(renamed, expected);
    let from = "mid_block.attentions.0.proj_attn.weight";
    let to = "mid_block.attentions.0.to_out.0.weight";
    assert!(report.renamed.contains(&(from.into(), to.into())));
    let weights = expected.iter().filter(|name| name.ends_with("weight")).count();
    assert_eq!(report.squeezed.len(), weights);
    let text = report.to_string();
    assert!(text.contains("renamed") && text.contains("converted from f16"), "{text}");
}

#[test]
fn import_export_import_gives_the_same_bytes() {
    let parameters = golden_parameters();
    let expected = golden_arena(&parameters);
    let folder = tempfile::tempdir().unwrap();
    let (first, second) =
        (folder.path().join("1.safetensors"), folder.path().join("2.safetensors"));
    weights::save(&first, &parameters, &expected, &BTreeMap::new()).unwrap();
    let (arena, _) = load(&first, &parameters).unwrap();
    assert_eq!(bits(&arena), bits(&expected));
    weights::save(&second, &parameters, &arena, &BTreeMap::new()).unwrap();
    let bytes = fs::read(&first).unwrap();
    assert_eq!(bytes, fs::read(&second).unwrap());

    // Tensor for tensor what diffusers saved, and in the same order.
    let (header_len, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    let reference = fs::read(golden("reference.safetensors")).unwrap();
    let (reference_len, reference_header) =
        safetensors::SafeTensors::read_metadata(&reference).unwrap();
    assert_eq!(header.offset_keys(), reference_header.offset_keys());
    assert_eq!(bytes[8 + header_len..], reference[8 + reference_len..]);
}

#[test]
fn denormals_and_negative_zero_survive() {
    let parameters = parameters();
    let expected = arena(&parameters, 3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let metadata = BTreeMap::from([("note".to_string(), "\"quoted\" \n ünï".to_string())]);
    weights::save(&path, &parameters, &expected, &metadata).unwrap();
    assert_eq!(bits(&load(&path, &parameters).unwrap().0), bits(&expected));
}

#[test]
fn doubles_are_rounded_to_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let values = [0.1f64, -1.0 / 3.0, 1e-320, 16777217.0];
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F64, vec![4], &data).unwrap();
    fs::write(&path, safetensors::serialize([("conv_in.bias", view)], None).unwrap()).unwrap();
    let (arena, _) = load(&path, &bias()).unwrap();
    assert_eq!(bits(&arena[..4]), bits(&[0.1, -1.0 / 3.0, 0.0, 16777216.0]));

    let (arena, report) = load(&golden("double.bin"), &bias()).unwrap();
    let parameters = golden_parameters();
    let offset = parameters.find("conv_in.bias").unwrap().offset;
    assert_eq!(bits(&arena[..4]), bits(&golden_arena(&parameters)[offset..][..4]));
    assert_eq!(report.types, BTreeMap::from([(Float::F64, 1)]));
}

#[test]
fn a_value_that_is_not_finite_is_refused_with_its_tensor() {
    let parameters = parameters();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    for bad in [f32::NAN, f32::INFINITY] {
        let mut arena = arena(&parameters, 1);
        arena[parameters.find("conv_in.bias").unwrap().offset + 2] = bad;
        weights::save(&path, &parameters, &arena, &BTreeMap::new()).unwrap();
        let error = load(&path, &parameters).unwrap_err().to_string();
        assert!(error.contains("`conv_in.bias`") && error.contains("element 2"), "{error}");
    }
    // 1e300 is finite in f64 and not in f32.
    let data: Vec<u8> = [1e300f64; 4].iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F64, vec![4], &data).unwrap();
    fs::write(&path, safetensors::serialize([("conv_in.bias", view)], None).unwrap()).unwrap();
    assert!(load(&path, &bias()).unwrap_err().to_string().contains("inf"));
}

/// Writes f32 zeros under the given names and shapes.
fn write_zeros(path: &Path, tensors: &[(&str, &[usize])]) {
    let data = vec![0; 4 * 1000];
    let views = tensors.iter().map(|(name, shape)| {
        let len = 4 * shape.iter().product::<usize>();
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), &data[..len]).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn all_misfits_stand_in_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    write_zeros(
        &path,
        &[
            ("conv_in.weight", &[5, 3, 3, 4]),
            ("time_proj.weight", &[7]),
            ("mid_block.attentions.0.query.weight", &[5, 5, 1, 1]),
            ("mid_block.attentions.0.to_q.weight", &[5, 5]),
            ("conv_out.weight", &[3, 5, 1, 1]),
            ("other.query.weight", &[2]),
            ("z1", &[1]),
            ("z2", &[1]),
            ("z3", &[1]),
        ],
    );
    let error = load(&path, &parameters()).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let text = error.to_string();
    for part in [
        &*path.to_string_lossy(),
        "1 missing: `conv_in.bias`",
        "4 not in the network: `other.query.weight`, `z1`, `z2`, ...",
        "1 of another shape: `conv_in.weight` is [5, 3, 3, 4] in the file and [5, 3, 3, 3]",
        "1 given twice",
        "config.json",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(!text.contains("z3"), "only the first few are listed: {text}");
}

#[test]
fn old_names_of_the_fourier_frequencies_are_known() {
    let mut plan = Plan::new();
    plan.parameter("time_proj.weight", &[7], DiskLayout::Same, Init::Constant(0.0), false);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    write_zeros(&path, &[("time_proj.W", &[7])]);
    assert_eq!(load(&path, &plan.parameters).unwrap().1.renamed.len(), 1);
    write_zeros(&path, &[("time_proj.W", &[7]), ("time_proj.weight", &[7])]);
    assert_eq!(load(&path, &plan.parameters).unwrap().1.renamed.len(), 0);
}

#[test]
fn files_that_hold_something_else_say_so() {
    for (name, part) in [
        ("object.bin", "DDPMScheduler"),
        ("nested.bin", "`model` is not a tensor"),
        ("integers.bin", "LongStorage"),
        ("old_format.bin", "PyTorch 1.6"),
        ("pipeline_bin", "holds no weights"),
        ("absent.safetensors", "cannot read"),
    ] {
        let error = load(&golden(name), &bias()).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(name), "{part:?} in {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let data = [0; 16];
    let view = TensorView::new(Dtype::I32, vec![4], &data).unwrap();
    fs::write(&path, safetensors::serialize([("conv_in.bias", view)], None).unwrap()).unwrap();
    let error = load(&path, &bias()).unwrap_err().to_string();
    assert!(error.contains("`conv_in.bias` is I32"), "{error}");
}

#[test]
fn shards_must_be_there_and_beside_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    for (json, part) in [
        (r#"{"weight_map": {"a": "gone.safetensors"}}"#, "`gone.safetensors` is missing"),
        (r#"{"weight_map": {"a": "../w.safetensors"}}"#, "beside the index"),
        (r#"{"weight_map": {"a": "/w.safetensors"}}"#, "beside the index"),
        (r#"{"weight_map": {"a": 3}}"#, "beside the index"),
        (r#"{"weights": {}}"#, "no `weight_map`"),
        (r#"{"weight_map": {"#, "not valid JSON"),
    ] {
        fs::write(&index, json).unwrap();
        let error = load(folder.path(), &bias()).unwrap_err().to_string();
        assert!(error.contains(part), "{part:?} in {error}");
    }
    // The same tensor in two shards.
    for name in ["1.safetensors", "2.safetensors"] {
        write_zeros(&folder.path().join(name), &[("conv_in.bias", &[4])]);
    }
    let json = r#"{"weight_map": {"conv_in.bias": "1.safetensors", "b": "2.safetensors"}}"#;
    fs::write(&index, json).unwrap();
    let error = load(folder.path(), &bias()).unwrap_err().to_string();
    assert!(error.contains("`conv_in.bias` stands twice"), "{error}");
    // Without an index, two unnamed files are ambiguous and one is taken.
    fs::remove_file(&index).unwrap();
    let error = load(folder.path(), &bias()).unwrap_err().to_string();
    assert!(error.contains("several safetensors files"), "{error}");
    fs::remove_file(folder.path().join("2.safetensors")).unwrap();
    assert!(load(folder.path(), &bias()).is_ok());
}

#[test]
fn an_arena_of_another_length_is_refused() {
    let parameters = parameters();
    let mut short = vec![0.0; parameters.arena_len() - 1];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    assert!(weights::save(&path, &parameters, &short, &BTreeMap::new()).is_err());
    assert!(!path.exists());
    weights::save(&path, &parameters, &arena(&parameters, 1), &BTreeMap::new()).unwrap();
    assert!(Weights::open(&path).unwrap().load_into(&parameters, &mut short).is_err());
}
