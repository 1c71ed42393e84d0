//! Tensor files of the command line.

use std::fs;

use half::{bf16, f16};
use langevin::checkpoint::tensors::{self, Tensor, Values, nchw_to_nhwc, nhwc_to_nchw};

use crate::support::raw_safetensors;

#[test]
fn tensors_come_back_with_names_shapes_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.safetensors");
    let x = Tensor::f32(&[2, 1, 1, 3], vec![1.0, -0.0, 3.5, 4.0, 5.0, 1e-40]).unwrap();
    let class = Tensor::i64(&[2], vec![i64::MIN, 9]).unwrap();
    let loss = Tensor::f32(&[], vec![0.25]).unwrap();
    tensors::write(&path, &[("x", &x), ("class", &class), ("loss", &loss)]).unwrap();

    let file = tensors::read(&path).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["class", "loss", "x"]);
    assert_eq!(file.get("x"), Some(&x));
    assert_eq!(file.get("loss"), Some(&loss));
    let (shape, values) = file.floats("x", ["n", "c", "h", "w"]).unwrap();
    assert_eq!((shape, values.len()), ([2, 1, 1, 3], 6));
    assert_eq!(file.labels("class").unwrap(), [i64::MIN, 9]);

    // The same bytes each time, and readable by the library alone.
    let bytes = fs::read(&path).unwrap();
    tensors::write(&path, &[("loss", &loss), ("class", &class), ("x", &x)]).unwrap();
    assert_eq!(bytes, fs::read(&path).unwrap());
    let other = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(other.tensor("class").unwrap().shape(), [2]);
}

#[test]
fn narrow_types_are_widened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.safetensors");
    let mut data = Vec::new();
    data.extend((-5i32).to_le_bytes());
    data.extend(f16::from_f32(1.5).to_le_bytes());
    data.extend(bf16::from_f32(-2.0).to_le_bytes());
    data.extend([200]);
    let header = r#"{"i":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},"h":{"dtype":"F16","shape":[1],"data_offsets":[4,6]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[6,8]},"u":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}}"#;
    fs::write(&path, raw_safetensors(header, &data)).unwrap();
    let file = tensors::read(&path).unwrap();
    assert_eq!(file.get("i").unwrap().values, Values::I64(vec![-5]));
    assert_eq!(file.get("u").unwrap().values, Values::I64(vec![200]));
    assert_eq!(file.get("h").unwrap().values, Values::F32(vec![1.5]));
    assert_eq!(file.get("b").unwrap().values, Values::F32(vec![-2.0]));
    let header = r#"{"flags":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}"#;
    fs::write(&path, raw_safetensors(header, &[1])).unwrap();
    let error = tensors::read(&path).unwrap_err().to_string();
    assert!(error.contains("`flags` is BOOL"), "{error}");
}

#[test]
fn a_tensor_of_the_wrong_kind_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.safetensors");
    let floats = Tensor::f32(&[2], vec![0.5, 999.0]).unwrap();
    let whole = Tensor::i64(&[2], vec![3, (1 << 24) + 1]).unwrap();
    tensors::write(&path, &[("floats", &floats), ("whole", &whole)]).unwrap();
    let file = tensors::read(&path).unwrap();
    assert_eq!(file.times("floats").unwrap(), [0.5, 999.0]);
    for (error, part) in [
        (file.times("whole").unwrap_err(), "16777217"),
        (file.labels("floats").unwrap_err(), "`floats` holds f32; i64"),
        (file.floats("whole", ["n"]).map(|_| ()).unwrap_err(), "`whole` holds whole numbers"),
        (file.floats("floats", ["n", "c"]).map(|_| ()).unwrap_err(), "expected [n, c]"),
        (file.labels("t").unwrap_err(), r#"no tensor `t` [n]; it holds ["floats", "whole"]"#),
    ] {
        assert!(error.to_string().contains(part), "{part:?} in {error}");
    }
}

#[test]
fn layouts_are_turned_and_turned_back() {
    // Element (n, c, h, w) holds its own coordinates.
    let axes = [2, 3, 2, 5];
    let [n, c, h, w] = axes;
    let value = |i, j, y, x| (((i * 10 + j) * 10 + y) * 10 + x) as f32;
    let mut nchw = Vec::new();
    for i in 0..n {
        for j in 0..c {
            for y in 0..h {
                nchw.extend((0..w).map(|x| value(i, j, y, x)));
            }
        }
    }
    let nhwc = nchw_to_nhwc(&nchw, axes).unwrap();
    for i in 0..n {
        for y in 0..h {
            for x in 0..w {
                for j in 0..c {
                    assert_eq!(nhwc[((i * h + y) * w + x) * c + j], value(i, j, y, x));
                }
            }
        }
    }
    assert_eq!(nhwc_to_nchw(&nhwc, axes).unwrap(), nchw);
    assert!(nchw_to_nhwc(&nchw[1..], axes).is_err());
    assert!(nhwc_to_nchw(&nhwc, [2, 3, 2, 4]).is_err());
    assert!(Tensor::f32(&[2, 2], vec![0.0; 3]).is_err());
}
