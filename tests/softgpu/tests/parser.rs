//! The parser and decoder meet text that no compiler wrote: an error each time, never a panic.

mod common;

use std::time::{Duration, Instant};

use common::Rng;
use softgpu::gpu::Gpu;
use softgpu::ptx::parse;
use softgpu::settings::Settings;

const SEED: &str = include_str!("fuzz-seed.ptx");

fn pieces() -> Vec<&'static str> {
    let mut list: Vec<&str> = SEED.split_inclusive(|c: char| " \t\n,;[]{}()".contains(c)).collect();
    list.extend([
        ".reg",
        ".pred",
        ".b128",
        ".param",
        "%r1",
        "0f3F800000",
        "-1",
        "99999999999",
        "0x",
        ".v4",
        "::",
        "{",
        "}",
        "[",
        "]",
        "<4>",
        "@!",
        "%p1",
        ";",
        ".shared",
        ".align 3",
        "mma.sync",
        "\"",
        "/*",
        "ret;",
        "bra",
        "call",
        "\u{e9}",
        "cvt.rn.f16x2.f32",
        "0d",
        ".local",
        "[%rd1+4]",
        "{%r1,%r2}",
        "_",
        "|",
    ]);
    list
}

/// One mutated text: pieces dropped, doubled, swapped, replaced, bytes flipped, text cut.
fn mutate(rng: &mut Rng, pieces: &[&str]) -> String {
    let mut list: Vec<&str> = SEED.split_inclusive(|c: char| " \t\n,;[]{}()".contains(c)).collect();
    for _ in 0..1 + rng.next() % 6 {
        let at = (rng.next() % list.len() as u64) as usize;
        let other = (rng.next() % list.len() as u64) as usize;
        match rng.next() % 6 {
            0 if list.len() > 1 => {
                list.remove(at);
            }
            1 => list.insert(at, list[other]),
            2 => list.swap(at, other),
            3 => list[at] = pieces[(rng.next() % pieces.len() as u64) as usize],
            4 => list.truncate(at.max(1)),
            _ => list.insert(at, pieces[(rng.next() % pieces.len() as u64) as usize]),
        }
    }
    let mut text: String = list.concat();
    if rng.next() & 3 == 0 && !text.is_empty() {
        let mut bytes = text.into_bytes();
        let at = (rng.next() % bytes.len() as u64) as usize;
        bytes[at] = rng.next() as u8;
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    text
}

/// SOFTGPU_FUZZ_SECONDS=600 runs it for the ten minutes of the promise, SOFTGPU_FUZZ_SEED from
/// elsewhere.
#[test]
fn mutated_modules_never_panic() {
    let seconds =
        std::env::var("SOFTGPU_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(5);
    let end = Instant::now() + Duration::from_secs(seconds);
    let pieces = pieces();
    let mut gpu = Gpu::new(Settings::default()).expect("device");
    let seed = std::env::var("SOFTGPU_FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let mut rng = Rng(seed);
    let (mut refused, mut taken) = (0u64, 0u64);
    while Instant::now() < end {
        let text = mutate(&mut rng, &pieces);
        match gpu.load(&text) {
            Ok(module) => {
                taken += 1;
                gpu.unload(&module);
            }
            Err(error) => {
                refused += 1;
                assert!(!error.message.is_empty());
            }
        }
    }
    println!("fuzzed for {seconds} s from seed {seed}: {refused} refused, {taken} taken");
    assert!(refused > 100 && taken > 0, "refused {refused}, taken {taken}");
}

#[test]
fn errors_name_line_and_text() {
    let text = SEED.replacen("add.s32", "add.s33", 1);
    let line = text.lines().position(|l| l.contains("add.s33")).expect("line") as u32 + 1;
    let mut gpu = Gpu::new(Settings::default()).expect("device");
    let error = gpu.load(&text).expect_err("add.s33 does not exist");
    assert_eq!(error.line, line);
    assert!(error.text.contains("add.s33"), "{error}");
    assert!(error.message.contains("unsupported instruction"), "{error}");
}

#[test]
fn the_seed_itself_loads() {
    let mut gpu = Gpu::new(Settings::default()).expect("device");
    let module = gpu.load(SEED).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(module.kernels().collect::<Vec<_>>(), ["seed"]);
    assert!(module.global("table").is_some());
}

#[test]
fn deep_nesting_is_refused_not_overflowed() {
    let open = "{".repeat(100_000);
    let text = format!(".version 8.0\n.target sm_80\n.address_size 64\n.entry k() {open}");
    let error = parse(&text).expect_err("nested too deep");
    assert!(error.message.contains("nested"), "{error}");
}
