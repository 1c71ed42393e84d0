//! Where the lanes of a warp point: patterns, sectors, banks.
#![allow(unsafe_code)] // Registers and memory are raw bytes.

use crate::isa::Addr;
use crate::isa::lanes::{Level, level};

/// Active lanes.
pub fn lanes(m: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| m >> l & 1 != 0)
}

/// How the active lanes' addresses lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Lane l at first + l * bytes, active lanes without gaps: (first active lane, lanes).
    Consecutive(u32, u32),
    /// All at the same address.
    Uniform,
    /// Anything else.
    Scattered,
}

/// What a pass over the active lanes' addresses finds.
#[derive(Clone, Copy)]
struct Survey {
    /// All addresses or-ed: the low bits show misalignment.
    low: u64,
    /// Not 0 unless lane l is at first + l * bytes.
    gaps: u64,
    /// Not 0 unless all are the same.
    spread: u64,
}

#[inline(always)]
fn survey_body(a: &[u64; 32], m: u32, bytes: u64) -> Survey {
    let first = m.trailing_zeros() & 31;
    let origin = a[first as usize];
    let base = origin.wrapping_sub(u64::from(first) * bytes);
    let (mut low, mut gaps, mut spread) = (0u64, 0u64, 0u64);
    for (l, &x) in a.iter().enumerate() {
        let active = 0u64.wrapping_sub(u64::from(m >> l & 1));
        low |= x & active;
        gaps |= (x ^ base.wrapping_add(l as u64 * bytes)) & active;
        spread |= (x ^ origin) & active;
    }
    Survey { low, gaps, spread }
}

#[inline(always)]
unsafe fn read_body(r: *const u32, addr: &Addr) -> [u64; 32] {
    let mut a = [addr.offset as u64; 32];
    if !addr.absolute {
        // SAFETY: the caller's promise.
        unsafe {
            if addr.wide {
                let reg = r.add(addr.reg as usize).cast::<u64>();
                for (l, x) in a.iter_mut().enumerate() {
                    *x = (*reg.add(l)).wrapping_add(addr.offset as u64);
                }
            } else {
                let reg = r.add(addr.reg as usize);
                for (l, x) in a.iter_mut().enumerate() {
                    *x = u64::from((*reg.add(l)).wrapping_add(addr.offset as u32));
                }
            }
        }
    }
    a
}

macro_rules! versions {
    ($features:literal, $survey:ident, $read:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $survey(a: &[u64; 32], m: u32, bytes: u64) -> Survey {
            survey_body(a, m, bytes)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $read(r: *const u32, addr: &Addr) -> [u64; 32] {
            // SAFETY: forwarded.
            unsafe { read_body(r, addr) }
        }
    };
}

versions!("avx2,bmi1,bmi2", survey_v3, read_v3);
versions!("avx2,bmi1,bmi2,avx512f,avx512bw,avx512dq,avx512vl", survey_v4, read_v4);

/// Classifies addresses; also whether all are multiples of `align`, a power of two.
#[inline(always)]
pub fn pattern(a: &[u64; 32], m: u32, bytes: u64, align: u64) -> (Pattern, bool) {
    let found = match level() {
        // SAFETY: the level says the features are there.
        #[cfg(target_arch = "x86_64")]
        Level::V4 => unsafe { survey_v4(a, m, bytes) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::V3 => unsafe { survey_v3(a, m, bytes) },
        _ => survey_body(a, m, bytes),
    };
    let first = m.trailing_zeros();
    let run = m >> (first & 31);
    let shape = if found.gaps == 0 && run & run.wrapping_add(1) == 0 {
        Pattern::Consecutive(first, run.count_ones())
    } else if found.spread == 0 {
        Pattern::Uniform
    } else {
        Pattern::Scattered
    };
    (shape, found.low & (align - 1) == 0)
}

/// Addresses of all lanes.
///
/// # Safety
/// `r` starts the frame the operand was decoded for.
#[inline(always)]
pub unsafe fn addresses(r: *const u32, addr: &Addr) -> [u64; 32] {
    // SAFETY: the caller's promise; the level says the features are there.
    unsafe {
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::V4 => read_v4(r, addr),
            #[cfg(target_arch = "x86_64")]
            Level::V3 => read_v3(r, addr),
            _ => read_body(r, addr),
        }
    }
}

/// Distinct 32-byte sectors of scattered accesses.
pub fn sectors(a: &[u64; 32], m: u32, bytes: u64) -> u64 {
    let mut list = [0u64; 64];
    let mut n = 0;
    for l in lanes(m) {
        for s in a[l] / 32..=(a[l] + bytes - 1) / 32 {
            if n == 0 || (list[n - 1] != s && !list[..n].contains(&s)) {
                if n == 64 {
                    return 64;
                }
                list[n] = s;
                n += 1;
            }
        }
    }
    n as u64
}

/// Passes over the banks for the lanes' accesses; 8-byte lanes go in halves, 16-byte in quarters.
pub fn wavefronts(a: &[u64; 32], m: u32, bytes: u64) -> u64 {
    let group = match bytes {
        0..=4 => 32,
        5..=8 => 16,
        _ => 8,
    };
    let mut total = 0;
    for g in (0..32).step_by(group) {
        let mut words = [[0u64; 8]; 32];
        let mut depth = [0usize; 32];
        let mut most = 0;
        for l in (g..g + group).filter(|l| m >> l & 1 != 0) {
            for w in a[l] / 4..=(a[l] + bytes - 1) / 4 {
                let bank = (w & 31) as usize;
                let d = depth[bank];
                if d < 8 && !words[bank][..d].contains(&w) {
                    words[bank][d] = w;
                    depth[bank] = d + 1;
                    most = most.max(d + 1);
                } else if d >= 8 && !words[bank].contains(&w) {
                    depth[bank] = d + 1;
                    most = most.max(d + 1);
                }
            }
        }
        total += most as u64;
    }
    total
}
