//! The table: one line a value, and what holds by item at the end.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

/// What a value is promised to be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// This, to half a hundredth.
    Is(f64),
    /// The first, to this share of it.
    Within(f64, f64),
}

impl Target {
    fn holds(self, value: f64) -> bool {
        match self {
            Target::AtLeast(least) => value >= least,
            Target::AtMost(most) => value <= most,
            Target::Is(exact) => (value - exact).abs() < 0.005,
            Target::Within(exact, share) => (value - exact).abs() <= share * exact,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::AtLeast(least) => write!(f, ">= {least}"),
            Target::AtMost(most) => write!(f, "<= {most}"),
            Target::Is(exact) => write!(f, "= {exact}"),
            Target::Within(exact, share) => write!(f, "{exact} +- {}%", 100.0 * share),
        }
    }
}

/// How many values of an item hold.
#[derive(Default)]
struct Count {
    holds: usize,
    fails: usize,
    not_measured: usize,
}

/// Prints lines and counts what holds.
#[derive(Default)]
pub struct Table {
    items: BTreeMap<u32, Count>,
    failures: Vec<String>,
    /// Every line, for [`Table::write_json`].
    lines: Vec<Value>,
}

/// Number of items.
const ITEMS: u32 = 16;

impl Table {
    /// A value with its target.
    pub fn line(&mut self, item: u32, what: &str, value: f64, target: Target) {
        let count = self.items.entry(item).or_default();
        let verdict = if target.holds(value) {
            count.holds += 1;
            "holds"
        } else {
            count.fails += 1;
            "DOES NOT HOLD"
        };
        let target = target.to_string();
        let holds = verdict == "holds";
        self.lines.push(json!({
            "item": item, "what": what, "value": value, "target": target, "holds": holds,
        }));
        let line = format!("{item:>2}  {what:<76} {value:>9.3}  {target:<8} {verdict}");
        println!("{line}");
        if verdict != "holds" {
            self.failures.push(line);
        }
    }

    /// A value that nothing is promised of.
    pub fn value(&mut self, item: u32, what: &str, value: f64) {
        self.items.entry(item).or_default();
        self.lines.push(json!({"item": item, "what": what, "value": value}));
        println!("{item:>2}  {what:<76} {value:>9.3}");
    }

    /// What is promised and was not counted, with the reason.
    pub fn not_measured(&mut self, item: u32, what: &str, why: &str) {
        self.items.entry(item).or_default().not_measured += 1;
        self.lines.push(json!({"item": item, "what": what, "not_measured": why}));
        println!("{item:>2}  {what}: not measured: {why}");
    }

    /// How something was counted.
    pub fn note(&mut self, text: &str) {
        println!("    ({text})");
    }

    /// Writes every line as JSON: item, what, value, and where something is promised the target
    /// and whether it holds.
    pub fn write_json(&self, path: &Path) {
        let text = serde_json::to_string_pretty(&self.lines).expect("plain values");
        std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        println!("\nwritten to {}", path.display());
    }

    /// What holds, item by item, and once more every line that does not.
    pub fn print_summary(&self) {
        println!("\n== summary");
        for item in 1..=ITEMS {
            let said = match self.items.get(&item) {
                None => "not measured in this run".into(),
                Some(c) if c.holds + c.fails + c.not_measured == 0 => "values only".into(),
                Some(c) => {
                    let verdict = match (c.holds, c.fails) {
                        (0, 0) => "not measured",
                        (_, 0) => "holds",
                        _ => "DOES NOT HOLD",
                    };
                    format!(
                        "{verdict:<14} {:>5} hold, {:>4} do not, {:>3} not measured",
                        c.holds, c.fails, c.not_measured
                    )
                }
            };
            println!("{item:>2}  {said}");
        }
        if !self.failures.is_empty() {
            println!("\n== lines that do not hold");
            self.failures.iter().for_each(|line| println!("{line}"));
        }
    }
}
