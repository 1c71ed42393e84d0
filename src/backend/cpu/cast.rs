//! Between f32 and bf16; see [`Cast`](crate::ops::cast::Cast).

use half::bf16;

use crate::plan::Mode;

/// f32 to bf16, to nearest even.
pub fn narrow(x: &[f32], (y, mode): (&mut [bf16], Mode)) {
    for (y, &x) in y.iter_mut().zip(x) {
        let before = if mode == Mode::Add { y.to_f32() } else { 0.0 };
        *y = bf16::from_f32(if mode == Mode::Add { before + x } else { x });
    }
}

/// bf16 to f32, exactly.
pub fn widen(x: &[bf16], (y, mode): (&mut [f32], Mode)) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = if mode == Mode::Add { *y + x.to_f32() } else { x.to_f32() };
    }
}
