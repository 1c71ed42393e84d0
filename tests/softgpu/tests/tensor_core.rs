//! The exact tensor-core modes against rows measured on the chips (Khattak and Mikaitis, BSD-2),
//! which stand beside the repository, not in it.

use std::io::Read;
use std::path::Path;

use softgpu::exec::tensor::dot;
use softgpu::isa::MmaType;
use softgpu::settings::MmaMode;

fn check(chip: &str, format: &str, ty: MmaType, mode: MmaMode) {
    // The repository's own ../shared, or that of the checkout this worktree belongs to.
    let name = format!("shared/reference/tensor-core/{chip}-{format}.tsv.gz");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = here.ancestors().skip(2).find_map(|a| std::fs::File::open(a.join(&name)).ok());
    let Some(file) = found else {
        println!("SKIPPED: no recorded rows {chip}-{format} beside the repository");
        eprintln!("SKIPPED: no recorded rows {chip}-{format} beside the repository");
        return;
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    let mut rows = 0;
    let mut wrong = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.starts_with('#')) {
        let bits: Vec<u32> =
            line.split('\t').map(|w| u32::from_str_radix(w, 16).expect("hex")).collect();
        let k = (bits.len() - 2) / 2;
        let floats: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
        let got = dot(&floats[..k], &floats[k..2 * k], floats[2 * k], ty, mode);
        let want = bits[2 * k + 1];
        let same = got.to_bits() == want || (got.is_nan() && f32::from_bits(want).is_nan());
        if !same {
            wrong.push(format!(
                "line {}: got {:08x}, chip {want:08x}: {line}",
                number + 1,
                got.to_bits()
            ));
        }
        rows += 1;
    }
    assert!(rows >= 2000, "{chip}-{format}: only {rows} rows");
    assert!(
        wrong.is_empty(),
        "{} of {rows} rows differ\n{}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
}

#[test]
fn a100_rows_are_reproduced() {
    check("A100", "bf16", MmaType::BF16, MmaMode::A100);
    check("A100", "fp16", MmaType::F16, MmaMode::A100);
    check("A100", "tf32", MmaType::TF32, MmaMode::A100);
}

#[test]
fn h100_rows_are_reproduced() {
    check("H100", "bf16", MmaType::BF16, MmaMode::H100);
    check("H100", "fp16", MmaType::F16, MmaMode::H100);
    check("H100", "tf32", MmaType::TF32, MmaMode::H100);
}

#[test]
fn long_sums_chain_the_chips_blocks() {
    // 2^24 and sixteen ones: A100 adds eight at a time and each block truncates, so order matters
    // only through the block length.
    let ones = [1.0f32; 16];
    let c = 16_777_216.0;
    assert_eq!(dot(&ones, &ones, c, MmaType::BF16, MmaMode::H100), 16_777_232.0);
    assert_eq!(dot(&ones, &ones, c, MmaType::BF16, MmaMode::A100), 16_777_232.0);
    // Below the last kept bit of the largest exponent everything is lost, term by term.
    let small = [0.125f32; 16];
    assert_eq!(dot(&small, &ones, c, MmaType::BF16, MmaMode::A100), c);
    // The fast mode's second chain starts at zero and keeps its half.
    assert_eq!(dot(&small, &ones, c - 8.0, MmaType::BF16, MmaMode::Fast), c - 7.0);
}
