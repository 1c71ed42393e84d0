//! Device printf and assert.
#![allow(unsafe_code)] // Registers are raw lane arrays.

use super::state::{Context, Fault, Warp};
use crate::finding::FindingKind;
use crate::isa::Builtin;
use crate::memory::LOCAL_WINDOW;

impl Context<'_> {
    /// vprintf or __assertfail for the lanes of `m`.
    pub fn builtin(
        &mut self,
        warp: &mut Warp,
        r: *mut u32,
        k: u32,
        m: u32,
        pc: u32,
    ) -> Result<(), Fault> {
        let call = &self.program.builtins[k as usize];
        // SAFETY: parameter words lie inside the frame.
        let arg = |index: usize, lane: usize| unsafe {
            let words = &call.args[index];
            let lo = u64::from(*r.add(words[0] as usize + lane));
            let hi = words.get(1).map_or(0, |&w| u64::from(*r.add(w as usize + lane)));
            lo | hi << 32
        };
        let first = m.trailing_zeros() as usize;
        if call.kind == Builtin::AssertFail {
            if call.args.len() < 3 {
                return Err(self.fault(
                    FindingKind::Assertion,
                    pc,
                    warp.index,
                    first as u32,
                    "assertion failed".into(),
                ));
            }
            let message = self.string(arg(0, first));
            let file = self.string(arg(1, first));
            let line = arg(2, first) as u32;
            let text = format!("assertion `{message}` failed at {file}:{line}");
            return Err(self.fault(FindingKind::Assertion, pc, warp.index, first as u32, text));
        }
        for lane in (0..32).filter(|l| m >> l & 1 != 0) {
            if call.args.len() < 2 {
                break;
            }
            let format = self.string(arg(0, lane));
            let arguments = arg(1, lane);
            let text = self.format(&format, arguments, warp.index as usize * 32 + lane);
            print!("{text}");
            for &slot in &call.rets {
                // SAFETY: as above.
                unsafe { *r.add(slot as usize + lane) = text.len() as u32 };
            }
        }
        Ok(())
    }

    fn string(&self, address: u64) -> String {
        let mut out = Vec::new();
        let mut byte = [0u8];
        while out.len() < 4096
            && self.memory.read(address + out.len() as u64, &mut byte)
            && byte[0] != 0
        {
            out.push(byte[0]);
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Formats with the arguments nvcc packed into local memory, each aligned to its size.
    fn format(&self, format: &str, arguments: u64, thread: usize) -> String {
        let mut offset = arguments.wrapping_sub(LOCAL_WINDOW) as usize;
        let mut take = |bytes: usize| {
            offset = offset.next_multiple_of(bytes);
            let at = thread * self.local_stride as usize + offset;
            offset += bytes;
            let mut raw = [0u8; 8];
            if let Some(src) = self.local.get(at..at + bytes) {
                raw[..bytes].copy_from_slice(src);
            }
            u64::from_le_bytes(raw)
        };
        let mut out = String::new();
        let mut chars = format.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut spec = String::new();
            let mut long = 0;
            for c in chars.by_ref() {
                match c {
                    'l' | 'z' | 'j' | 't' => long += if c == 'l' { 1 } else { 2 },
                    'h' => {}
                    '%' | 'a'..='z' | 'A'..='Z' => {
                        spec.push(c);
                        break;
                    }
                    _ => spec.push(c),
                }
            }
            let kind = spec.pop().unwrap_or('%');
            let precision = spec.split('.').nth(1).and_then(|p| p.parse().ok()).unwrap_or(6usize);
            let width =
                spec.split('.').next().unwrap_or("").trim_start_matches(['-', '+', '0', ' ', '#']);
            let width: usize = width.parse().unwrap_or(0);
            let bytes = if long > 0 { 8 } else { 4 };
            let body = match kind {
                '%' => "%".to_string(),
                'd' | 'i' if long > 0 => (take(8) as i64).to_string(),
                'd' | 'i' => (take(4) as i32).to_string(),
                'u' => take(bytes).to_string(),
                'x' => format!("{:x}", take(bytes)),
                'X' => format!("{:X}", take(bytes)),
                'o' => format!("{:o}", take(bytes)),
                'p' => format!("0x{:x}", take(8)),
                'c' => char::from(take(4) as u8).to_string(),
                's' => self.string(take(8)),
                'f' | 'F' => format!("{:.precision$}", f64::from_bits(take(8))),
                'e' | 'E' | 'g' | 'G' => format!("{:e}", f64::from_bits(take(8))),
                other => format!("%{other}"),
            };
            let zero = spec.starts_with('0');
            let fill = width.saturating_sub(body.len());
            out.extend(std::iter::repeat_n(if zero { '0' } else { ' ' }, fill));
            out.push_str(&body);
        }
        out
    }
}
