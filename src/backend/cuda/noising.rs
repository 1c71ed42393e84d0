//! Launches of `kernels/noising.cu`.

use super::arguments::{Call, for_type, groups};
use super::entries::{NOISING_BF16, NOISING_F32, params};
use crate::error::Result;
use crate::ops::noising::{Noising, Pick};

/// Clean images at input `at`, or picked from the set there by input `picks`.
pub(super) fn images(call: &Call, pick: Option<Pick>, at: usize, picks: usize) -> params::Images {
    let Some(pick) = pick else {
        return params::Images { set: call.input(at).cast(), ..Default::default() };
    };
    params::Images {
        set: match pick.levels {
            0 => call.input(at).cast(),
            _ => call.input_u8(at).cast(),
        },
        picks: call.input_u32(picks),
        rows: pick.rows as u32,
        width: pick.width as u32,
        channels: pick.channels as u32,
        levels: pick.levels as u32,
    }
}

pub(super) fn noising(op: &Noising, call: &Call) -> Result<()> {
    let dtype = call.written_dtype(0);
    let (x_t, add) = call.required_as(0, dtype);
    let params = params::Noising {
        x_t,
        x0: call.output(1).map_or(std::ptr::null_mut(), |(x0, _)| x0),
        images: images(call, op.pick, 0, 3),
        coefficients: call.input(1),
        keys: call.input_u32(2),
        len: op.len as i64,
        add,
    };
    let entry = for_type(dtype, &NOISING_F32, &NOISING_BF16);
    call.launch(entry, groups(entry, op.len, op.n), 0, &params)
}
