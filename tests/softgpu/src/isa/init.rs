//! Dataflow over drafts: which registers may be read before they are written (those are tracked at
//! run time, the rest cost nothing), and how many are live at once.

use super::Op;
use super::builder::Draft;

/// What to track.
pub(super) struct InitPlan {
    /// Virtual registers whose lanes must be tracked.
    pub tracked: Vec<u32>,
    /// For each draft, the registers to check before it.
    pub check: Vec<Vec<u32>>,
}

fn successors(k: usize, draft: &Draft, labels: &[u32], tables: &[Vec<u32>]) -> Vec<usize> {
    let guarded = draft.instr.guard != super::GUARD_NONE;
    let target = |id: u32| labels.get(id as usize).map_or(usize::MAX, |&t| t as usize);
    let mut out = match draft.instr.op {
        Op::Bra(id) => vec![target(id)],
        Op::Brx(t) => tables[t as usize].iter().map(|&id| target(id)).collect(),
        Op::Exit | Op::Ret | Op::Trap => Vec::new(),
        _ => return vec![k + 1],
    };
    if guarded {
        out.push(k + 1);
    }
    out
}

/// Basic blocks as (first, last + 1), and their successor blocks.
fn blocks(
    drafts: &[Draft],
    labels: &[u32],
    tables: &[Vec<u32>],
) -> (Vec<(usize, usize)>, Vec<Vec<usize>>) {
    let n = drafts.len();
    let mut leader = vec![false; n + 1];
    leader[0] = true;
    for &at in labels {
        if let Some(flag) = leader.get_mut(at as usize) {
            *flag = true;
        }
    }
    for (k, draft) in drafts.iter().enumerate() {
        if matches!(draft.instr.op, Op::Bra(_) | Op::Brx(_) | Op::Exit | Op::Ret | Op::Trap) {
            leader[k + 1] = true;
        }
    }
    let starts: Vec<usize> = (0..n).filter(|&k| leader[k]).collect();
    let mut block_of = vec![usize::MAX; n + 1];
    let mut spans = Vec::new();
    for (b, &s) in starts.iter().enumerate() {
        let e = starts.get(b + 1).copied().unwrap_or(n);
        block_of[s] = b;
        spans.push((s, e));
    }
    let next = spans
        .iter()
        .map(|&(_, e)| {
            successors(e - 1, &drafts[e - 1], labels, tables)
                .into_iter()
                .filter(|&t| t < n)
                .map(|t| block_of[t])
                .collect()
        })
        .collect();
    (spans, next)
}

struct Bits(Vec<u64>);

impl Bits {
    fn get(&self, i: u32) -> bool {
        self.0[i as usize / 64] >> (i % 64) & 1 != 0
    }

    fn set(&mut self, i: u32, on: bool) {
        let bit = 1u64 << (i % 64);
        if on {
            self.0[i as usize / 64] |= bit;
        } else {
            self.0[i as usize / 64] &= !bit;
        }
    }
}

fn step(state: &mut Bits, draft: &Draft) {
    let guarded = draft.instr.guard != super::GUARD_NONE;
    let defined = !draft.is_copy || draft.uses.first().is_none_or(|&u| state.get(u));
    for &d in &draft.defs {
        if !defined {
            state.set(d, false);
        } else if !guarded {
            state.set(d, true);
        }
    }
}

/// Finds the registers that some path may read before writing.
pub(super) fn analyse(
    drafts: &[Draft],
    labels: &[u32],
    tables: &[Vec<u32>],
    vregs: usize,
) -> InitPlan {
    let (spans, next) = blocks(drafts, labels, tables);
    let words = vregs.div_ceil(64).max(1);
    // Definitely assigned at block entry; everything for blocks not reached yet.
    let mut entry = vec![vec![u64::MAX; words]; spans.len()];
    let mut check = vec![Vec::new(); drafts.len()];
    if spans.is_empty() {
        return InitPlan { tracked: Vec::new(), check };
    }
    entry[0] = vec![0; words];
    let mut work: Vec<usize> = (0..spans.len()).rev().collect();
    while let Some(b) = work.pop() {
        let mut state = Bits(entry[b].clone());
        for draft in &drafts[spans[b].0..spans[b].1] {
            step(&mut state, draft);
        }
        for &s in &next[b] {
            let mut changed = false;
            for (e, &x) in entry[s].iter_mut().zip(&state.0) {
                changed |= *e & !x != 0;
                *e &= x;
            }
            if changed && !work.contains(&s) {
                work.push(s);
            }
        }
    }
    let mut tracked = Vec::new();
    for (b, &(first, end)) in spans.iter().enumerate() {
        let mut state = Bits(entry[b].clone());
        for k in first..end {
            let draft = &drafts[k];
            for &u in &draft.uses {
                if !state.get(u) {
                    tracked.push(u);
                    if !draft.is_copy && !check[k].contains(&u) {
                        check[k].push(u);
                    }
                }
            }
            step(&mut state, draft);
        }
    }
    // A copy hands its doubt on, so the destination is tracked with the source.
    loop {
        let before = tracked.len();
        for draft in drafts.iter().filter(|d| d.is_copy) {
            if let (Some(u), Some(d)) = (draft.uses.first(), draft.defs.first())
                && tracked.contains(u)
                && !tracked.contains(d)
            {
                tracked.push(*d);
            }
        }
        if tracked.len() == before {
            break;
        }
    }
    tracked.sort_unstable();
    tracked.dedup();
    InitPlan { tracked, check }
}

/// The largest number of registers live at once.
pub(super) fn live_words(drafts: &[Draft], labels: &[u32], tables: &[Vec<u32>]) -> u32 {
    let (spans, next) = blocks(drafts, labels, tables);
    let vregs = drafts
        .iter()
        .flat_map(|d| d.uses.iter().chain(&d.defs))
        .max()
        .map_or(0, |&v| v as usize + 1);
    let words = vregs.div_ceil(64).max(1);
    let mut entry = vec![vec![0u64; words]; spans.len()];
    let mut most = 0;
    loop {
        let mut changed = false;
        for b in (0..spans.len()).rev() {
            let mut state = Bits(vec![0; words]);
            for &s in &next[b] {
                for (x, &e) in state.0.iter_mut().zip(&entry[s]) {
                    *x |= e;
                }
            }
            for draft in drafts[spans[b].0..spans[b].1].iter().rev() {
                if draft.instr.guard == super::GUARD_NONE {
                    for &d in &draft.defs {
                        state.set(d, false);
                    }
                }
                for &u in &draft.uses {
                    state.set(u, true);
                }
                most = most.max(state.0.iter().map(|w| w.count_ones()).sum::<u32>());
            }
            if state.0 != entry[b] {
                entry[b] = state.0;
                changed = true;
            }
        }
        if !changed {
            return most;
        }
    }
}
