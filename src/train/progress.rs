//! How far a long run is: a bar on a terminal, a plain line every few seconds
//! elsewhere (files, pipes, CI), both on standard error.

use std::fmt::{Display, Write as _};
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between plain lines.
const LINES_EVERY: Duration = Duration::from_secs(5);
/// Time between changes of the bar.
const BAR_EVERY: Duration = Duration::from_millis(100);

/// Shows a count that rises to a total. Between two displays an update costs a
/// look at the clock and allocates nothing.
pub struct Progress {
    total: u64,
    start: u64,
    began: Instant,
    every: Duration,
    view: Mutex<View>,
}

struct View {
    shown: Option<Instant>,
    position: u64,
    output: Output,
}

enum Output {
    Bar(ProgressBar),
    Lines { label: String, to: Box<dyn Write + Send> },
}

impl Progress {
    /// Progress of `label` ("train", "sample") from `start`, where an earlier
    /// run ended, to `total`.
    pub fn new(label: &str, total: u64, start: u64) -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress::lines(label, total, start, LINES_EVERY, Box::new(std::io::stderr()));
        }
        let style = ProgressStyle::with_template(
            "{prefix} {wide_bar:.cyan/238} {pos}/{len}  {per_sec}  {eta} left  {msg}",
        )
        .expect("the template is well formed")
        .progress_chars("━╸━")
        .with_key(
            "per_sec",
            |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = write!(out, "{}", rate(state.per_sec()));
            },
        );
        let bar = ProgressBar::new(total).with_style(style).with_prefix(label.to_string());
        bar.set_position(start);
        // What was done before tells nothing about the speed of this run.
        bar.reset_eta();
        Progress::with(total, start, BAR_EVERY, Output::Bar(bar))
    }

    /// Plain lines to `to`, at most one in `every`, whatever the terminal.
    pub fn lines(
        label: &str,
        total: u64,
        start: u64,
        every: Duration,
        to: Box<dyn Write + Send>,
    ) -> Progress {
        Progress::with(total, start, every, Output::Lines { label: label.to_string(), to })
    }

    fn with(total: u64, start: u64, every: Duration, output: Output) -> Progress {
        let view = Mutex::new(View { shown: None, position: start, output });
        Progress { total, start, began: Instant::now(), every, view }
    }

    /// The count has risen to `position`; `message` (the loss, say) is formatted
    /// only when something is shown.
    pub fn update(&self, position: u64, message: impl Display) {
        let mut view = self.view();
        view.position = position;
        // Nothing is known about the speed at once, so the first line waits.
        let last = view.shown.unwrap_or(self.began);
        if last.elapsed() >= self.every {
            self.show(&mut view, &message);
        }
    }

    /// Prints a line of its own, above the bar.
    pub fn note(&self, line: impl Display) {
        match &mut self.view().output {
            Output::Bar(bar) => bar.suspend(|| eprintln!("{line}")),
            // A closed pipe is no reason to stop a run.
            Output::Lines { to, .. } => drop(writeln!(to, "{line}")),
        }
    }

    /// Takes the bar away, or prints the last line. The count may be short of
    /// the total, when a run is interrupted.
    pub fn finish(&self) {
        let mut view = self.view();
        if let Output::Bar(bar) = &view.output {
            bar.finish_and_clear();
        } else {
            self.show(&mut view, &"");
        }
    }

    fn view(&self) -> std::sync::MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, view: &mut View, message: &dyn Display) {
        view.shown = Some(Instant::now());
        let position = view.position;
        match &mut view.output {
            Output::Bar(bar) => {
                bar.set_position(position);
                bar.set_message(message.to_string());
            }
            Output::Lines { label, to } => {
                let mut line = format!("{label}  {position}/{}", self.total);
                if let Some(percent) = (position * 100).checked_div(self.total) {
                    let _ = write!(line, "  {percent} %");
                }
                let elapsed = self.began.elapsed().as_secs_f64();
                let done = position.saturating_sub(self.start) as f64;
                if done > 0.0 && elapsed > 0.0 {
                    let left = self.total.saturating_sub(position) as f64 * elapsed / done;
                    let _ = write!(line, "  {}", rate(done / elapsed));
                    let _ = match position < self.total {
                        true => write!(line, "  {} left", span(left)),
                        false => write!(line, "  in {}", span(elapsed)),
                    };
                }
                let message = message.to_string();
                if !message.is_empty() {
                    let _ = write!(line, "  {message}");
                }
                let _ = writeln!(to, "{line}");
            }
        }
    }
}

/// A rate a person can read: many a second, or many seconds each.
fn rate(per_second: f64) -> String {
    match per_second {
        100.0.. => format!("{per_second:.0}/s"),
        1.0.. => format!("{per_second:.1}/s"),
        0.0001.. => format!("{:.1} s each", 1.0 / per_second),
        _ => "-/s".into(),
    }
}

/// A time span in its two leading units.
fn span(seconds: f64) -> String {
    let seconds = seconds.round().min(1e12) as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {:02} s", seconds % 60),
        (0, _, _) => format!("{hours} h {:02} min", minutes % 60),
        _ => format!("{days} d {:02} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_rates_read_well_at_any_size() {
        assert_eq!([span(0.2), span(61.0), span(3700.0)], ["0 s", "1 min 01 s", "1 h 01 min"]);
        assert_eq!(span(90_000.0), "1 d 01 h");
        assert_eq!(span(f64::INFINITY), "11574074 d 01 h");
        assert_eq!([rate(1234.4), rate(12.34), rate(0.25)], ["1234/s", "12.3/s", "4.0 s each"]);
        assert_eq!([rate(0.0), rate(f64::NAN)], ["-/s", "-/s"]);
    }
}
