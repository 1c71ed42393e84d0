//! What depends only on how the addresses of a warp lie to each other, kept from one execution of an
//! instruction to the next: in loops the pattern moves as a whole.

/// The pattern of an instruction's last execution.
pub struct Pattern {
    active: u32,
    /// The low bits of the first address that matter.
    low: u64,
    /// Addresses relative to the first, inactive lanes 0.
    delta: [u64; 32],
    /// Sectors, or passes over the banks.
    pub count: u64,
    plan: Option<Plan>,
}

/// The words of an access in address order, each once.
#[derive(Default)]
pub struct Plan {
    /// Neighbouring words.
    pub spans: Vec<Span>,
    /// The lane of each word, or [`Plan::SEVERAL`].
    pub lanes: Vec<u8>,
    /// Some word belongs to several lanes.
    pub overlaps: bool,
}

/// Neighbouring words of a plan.
#[derive(Clone, Copy)]
pub struct Span {
    /// First byte relative to the first active lane's address.
    pub delta: u64,
    /// First word in [`Plan::lanes`].
    pub first: usize,
    /// Words.
    pub words: usize,
}

impl Plan {
    /// In place of a lane: more than one.
    pub const SEVERAL: u8 = 32;

    /// From words (relative to the first address, in any order) and their lanes.
    fn new(mut words: Vec<(i64, u8)>) -> Plan {
        words.sort_unstable();
        let mut plan = Plan::default();
        let mut last = None;
        for (word, lane) in words {
            if last == Some(word) {
                let known = plan.lanes.last_mut();
                if let Some(known) = known.filter(|known| **known != lane) {
                    *known = Plan::SEVERAL;
                    plan.overlaps = true;
                }
                continue;
            }
            match plan.spans.last_mut() {
                Some(span) if last == Some(word - 1) => span.words += 1,
                _ => {
                    let delta = (4 * word) as u64;
                    plan.spans.push(Span { delta, first: plan.lanes.len(), words: 1 });
                }
            }
            plan.lanes.push(lane);
            last = Some(word);
        }
        plan
    }
}

/// Addresses relative to the first active lane's, inactive lanes 0.
#[inline(always)]
fn relative(a: &[u64; 32], m: u32) -> (u64, [u64; 32]) {
    let first = a[(m.trailing_zeros() & 31) as usize];
    let mut delta = [0u64; 32];
    for l in 0..32 {
        let active = 0u64.wrapping_sub(u64::from(m >> l & 1));
        delta[l] = a[l].wrapping_sub(first) & active;
    }
    (first, delta)
}

impl Pattern {
    /// Finds the pattern of these addresses in `slot`, true when it is the last execution's, or puts
    /// it there with what `count` says. `low` masks the bits of the first address that the count
    /// depends on.
    #[inline(always)]
    pub fn recall(
        slot: &mut Option<Box<Pattern>>,
        a: &[u64; 32],
        m: u32,
        low: u64,
        count: impl FnOnce() -> u64,
    ) -> bool {
        let (first, delta) = relative(a, m);
        let low = first & low;
        if let Some(known) = slot {
            let mut differ = u64::from(known.active ^ m) | known.low ^ low;
            for l in 0..32 {
                differ |= known.delta[l] ^ delta[l];
            }
            if differ == 0 {
                return true;
            }
        }
        let new = Pattern { active: m, low, delta, count: count(), plan: None };
        match slot {
            Some(known) => **known = new,
            None => *slot = Some(Box::new(new)),
        }
        false
    }

    /// The plan of the pattern; `lane` names the lane of a word by the address it belongs to and
    /// its number behind that, of `words`.
    pub fn plan(&mut self, words: u32, lane: impl Fn(u32, u32) -> u32) -> &Plan {
        let Pattern { active, delta, plan, .. } = self;
        plan.get_or_insert_with(|| {
            let mut list = Vec::new();
            for l in (0..32u32).filter(|l| *active >> l & 1 != 0) {
                for k in 0..words {
                    let word = (delta[l as usize] as i64 >> 2) + i64::from(k);
                    list.push((word, lane(l, k) as u8));
                }
            }
            Plan::new(list)
        })
    }
}
