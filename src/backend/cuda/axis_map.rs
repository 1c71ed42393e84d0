//! Launches of `kernels/axis_map.cu`.

use super::arguments::Call;
use super::entries::{AXIS_MAP_F32, params};
use crate::error::Result;
use crate::ops::axis_map::AxisMap;

pub(super) fn axis_map(op: &AxisMap, call: &Call) -> Result<()> {
    let (y, add) = call.required(0);
    let params = params::AxisMap {
        y,
        x: call.input(0),
        matrix: call.input(1),
        outer: op.outer as i64,
        from: op.from as u32,
        to: op.to as u32,
        inner: op.inner as u32,
        transposed: u32::from(op.transposed),
        add,
    };
    let elements = op.outer * op.to * op.inner;
    call.launch(&AXIS_MAP_F32, [elements.div_ceil(AXIS_MAP_F32.threads as usize), 1, 1], 0, &params)
}
