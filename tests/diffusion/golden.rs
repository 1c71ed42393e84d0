//! What tests/golden/schedulers.py has made with diffusers.

use safetensors::tensor::{Dtype, SafeTensors};

/// A file of tests/golden.
pub fn read(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A tensor's values in f64.
pub fn values(file: &SafeTensors, name: &str) -> Vec<f64> {
    let view = file.tensor(name).unwrap();
    match view.dtype() {
        Dtype::F32 => {
            let words = view.data().chunks_exact(4);
            words.map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect()
        }
        Dtype::F64 => {
            let words = view.data().chunks_exact(8);
            words.map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
        }
        other => panic!("{name} is {other:?}"),
    }
}
