//! The Inception-v3 of FID against PyTorch, with weights made by
//! tests/golden/inception.py's formula.

use std::path::Path;

use langevin::Error;
use langevin::backend::cpu::Cpu;
use langevin::model::inception::{FEATURES, Inception};
use safetensors::SafeTensors;

use super::golden::values;

fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let mut u = values(name, shape.iter().product());
    let (scale, offset) = match shape {
        [_, rest @ ..] if shape.len() == 4 => {
            ((6.0 / rest.iter().product::<usize>() as f64).sqrt() as f32, 0.0)
        }
        _ if name.ends_with("running_var") => (0.5, 1.0),
        _ => (0.25, if name.ends_with("weight") { 1.0 } else { 0.0 }),
    };
    u.iter_mut().for_each(|u| *u = *u * scale + offset);
    u
}

/// A picture of bytes in model range, channels last.
fn picture(name: &str, [h, w, c]: [usize; 3]) -> Vec<f32> {
    let u = values(name, h * w * c);
    let mut out = vec![0f32; h * w * c];
    for (i, u) in u.iter().enumerate() {
        let byte = ((u + 1.0) * 128.0).floor();
        out[(i % (h * w)) * c + i / (h * w)] = 2.0 * byte / 255.0 - 1.0;
    }
    out
}

#[test]
fn features_match_pytorch_and_do_not_depend_on_the_batch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/inception.safetensors");
    let bytes = std::fs::read(&path).expect("golden file");
    let golden = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let expected = |name: &str| -> Vec<f32> {
        let data = golden.tensor(name).expect("present").data().as_chunks().0;
        data.iter().map(|&b| f32::from_le_bytes(b)).collect()
    };
    let network = Inception::from_tensors(&|name, shape| Ok(weight(name, shape))).expect("fits");
    let features = |images: &[f32], shape| {
        let cpu = Box::new(Cpu::new(0));
        network.features(cpu, images, shape, &mut |_| {}).expect("runs")
    };
    let (colour, grey) = (picture("colour", [20, 33, 3]), picture("grey", [8, 8, 1]));
    let mut other = grey.clone();
    other.reverse();
    let of_colour = features(&colour, [1, 20, 33, 3]);
    let of_grey = features(&[other, grey].concat(), [2, 8, 8, 1]);
    for (name, found) in [("colour", &of_colour[..]), ("grey", &of_grey[FEATURES..])] {
        let expected = expected(name);
        let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert_eq!(found.len(), expected.len());
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= 2e-5 * largest, "{name}: feature {i} is {a} and not {b}");
        }
    }
}

#[test]
fn weights_that_are_absent_or_of_another_shape_are_refused_by_name() {
    let refuse = |what: &'static str| {
        let read = move |name: &str, shape: &[usize]| match name == what {
            true => Err(Error::Usage(format!("no {name}"))),
            false => Ok(vec![1.0; shape.iter().product()]),
        };
        Inception::from_tensors(&read).err().expect("refused").to_string()
    };
    assert_eq!(refuse("Mixed_7c.branch_pool.bn.bias"), "no Mixed_7c.branch_pool.bn.bias");
    let negative = |name: &str, shape: &[usize]| {
        let value = if name.ends_with("running_var") { -1.0 } else { 1.0 };
        Ok(vec![value; shape.iter().product()])
    };
    let error = Inception::from_tensors(&negative).err().expect("refused").to_string();
    assert!(error.contains("Conv2d_1a_3x3.bn.running_var"), "{error}");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mlp-fourier.safetensors");
    let error = Inception::open(&file).err().expect("refused").to_string();
    assert!(
        error.contains("Conv2d_1a_3x3.conv.weight") && error.contains("mlp-fourier"),
        "{error}"
    );
}
