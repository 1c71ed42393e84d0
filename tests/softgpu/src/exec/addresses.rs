//! Where the lanes of a warp point: runs of neighbours, sectors, banks.
#![allow(unsafe_code)] // Registers are raw lane arrays.

use crate::isa::Addr;
use crate::isa::lanes::{Level, level, pack};

/// Active lanes.
#[inline(always)]
pub fn lanes(m: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| m >> l & 1 != 0)
}

/// Addresses of all lanes.
///
/// # Safety
/// `r` starts the frame the operand was decoded for.
#[inline(always)]
pub unsafe fn addresses(r: *const u32, addr: &Addr) -> [u64; 32] {
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

/// The addresses of one warp access, and how neighbouring lanes lie.
pub struct Reach<'a> {
    /// Address of each lane.
    pub a: &'a [u64; 32],
    /// Active lanes.
    pub m: u32,
    /// Bytes each lane accesses.
    pub bytes: u64,
    /// Lanes at addresses that are not multiples of `bytes`.
    pub misaligned: u32,
    /// Lanes whose next lane is active too and lies right behind.
    follow: u32,
    /// Lanes whose next lane is active too and at the same place.
    same: u32,
}

impl<'a> Reach<'a> {
    /// Surveys the addresses of the lanes `m`.
    #[inline(always)]
    pub fn new(a: &'a [u64; 32], m: u32, bytes: u64) -> Reach<'a> {
        let (follow, same, low) = neighbours(a, bytes);
        let both = m & m >> 1;
        Reach { a, m, bytes, misaligned: low & m, follow: follow & both, same: same & both }
    }

    /// All lanes, one behind the other.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.m == u32::MAX && self.follow == u32::MAX >> 1
    }

    /// The run of all active lanes, when one run is all there is.
    #[inline(always)]
    pub fn only_run(&self) -> Option<Run> {
        self.runs().next().filter(|run| run.only)
    }

    /// The active lanes as runs of neighbours.
    #[inline(always)]
    pub fn runs(&self) -> Runs<'_> {
        Runs { reach: self, left: self.m }
    }
}

/// Lanes whose next lane lies right behind, lanes whose next lane is at the same place (the last
/// lane's bits mean nothing), lanes that are not at multiples of `bytes`.
#[inline(always)]
fn neighbours(a: &[u64; 32], bytes: u64) -> (u32, u32, u32) {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::V4 {
        // SAFETY: the level says the features are there.
        return unsafe { neighbours_v4(a, bytes) };
    }
    let mut next = [0u64; 32];
    next[..31].copy_from_slice(&a[1..]);
    let (mut follow, mut same, mut low) = ([0u8; 32], [0u8; 32], [0u8; 32]);
    for l in 0..32 {
        follow[l] = u8::from(next[l] == a[l].wrapping_add(bytes));
        same[l] = u8::from(next[l] == a[l]);
        low[l] = u8::from(a[l] & (bytes - 1) != 0);
    }
    (pack(&follow), pack(&same), pack(&low))
}

/// The same in registers: shifting by a lane through memory would stall on the stores before it.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn neighbours_v4(a: &[u64; 32], bytes: u64) -> (u32, u32, u32) {
    use std::arch::x86_64::*;
    // SAFETY: the four loads cover the array.
    let v: [__m512i; 4] =
        std::array::from_fn(|k| unsafe { _mm512_loadu_si512(a.as_ptr().add(8 * k).cast()) });
    let step = _mm512_set1_epi64(bytes as i64);
    let bits = _mm512_set1_epi64(bytes as i64 - 1);
    let (mut follow, mut same, mut low) = (0u32, 0u32, 0u32);
    for k in 0..4 {
        let next = _mm512_alignr_epi64::<1>(v[(k + 1) & 3], v[k]);
        follow |= u32::from(_mm512_cmpeq_epi64_mask(next, _mm512_add_epi64(v[k], step))) << (8 * k);
        same |= u32::from(_mm512_cmpeq_epi64_mask(next, v[k])) << (8 * k);
        low |= u32::from(_mm512_test_epi64_mask(v[k], bits)) << (8 * k);
    }
    (follow, same, low)
}

/// Neighbouring lanes that access memory one behind the other, or all the same place.
#[derive(Clone, Copy)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// Bytes from there on.
    pub len: u64,
    /// First lane.
    pub lane: u32,
    /// All lanes of the run, more than one, are at the same place.
    pub shared: bool,
    /// Nothing active outside the run.
    pub only: bool,
}

/// Iterator over runs.
pub struct Runs<'a> {
    reach: &'a Reach<'a>,
    left: u32,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    #[inline(always)]
    fn next(&mut self) -> Option<Run> {
        if self.left == 0 {
            return None;
        }
        let Reach { a, m, bytes, follow, same, .. } = *self.reach;
        let lane = self.left.trailing_zeros();
        let behind = (follow >> lane).trailing_ones();
        let equal = (same >> lane).trailing_ones();
        let lanes = behind.max(equal) + 1;
        let covered = (u32::MAX >> (32 - lanes)) << lane;
        self.left &= !covered;
        let len = if equal > behind { bytes } else { bytes * u64::from(lanes) };
        let start = a[lane as usize];
        Some(Run { start, len, lane, shared: equal > behind, only: covered == m })
    }
}

/// Distinct 32-byte sectors of scattered accesses.
#[inline(never)]
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
#[inline(never)]
pub fn wavefronts(a: &[u64; 32], m: u32, bytes: u64) -> u64 {
    const NONE: u8 = u8::MAX;
    let group = match bytes {
        0..=4 => 32,
        5..=8 => 16,
        _ => 8,
    };
    let mut total = 0;
    for g in (0..32).step_by(group) {
        // Distinct words of the group, chained by bank. A group has at most 32 words, 64 when its
        // lanes access 32 bytes each.
        let mut words = [0u64; 64];
        let mut link = [NONE; 64];
        let mut head = [NONE; 32];
        let mut depth = [0u8; 32];
        let mut n = 0;
        for l in (g..g + group).filter(|l| m >> l & 1 != 0) {
            for w in a[l] / 4..=(a[l] + bytes - 1) / 4 {
                let bank = (w & 31) as usize;
                let mut at = head[bank];
                while at != NONE && words[usize::from(at) & 63] != w {
                    at = link[usize::from(at) & 63];
                }
                if at == NONE {
                    words[n & 63] = w;
                    link[n & 63] = head[bank];
                    head[bank] = n as u8;
                    depth[bank] += 1;
                    n += 1;
                }
            }
        }
        total += u64::from(depth.iter().copied().max().unwrap_or(0));
    }
    total
}
