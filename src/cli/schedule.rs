//! `langevin schedule`: a process in numbers.

use clap::Args;
use langevin::config;
use langevin::diffusion::process::ProcessKind;
use langevin::diffusion::schedule::{self, Row};
use langevin::{Error, Result};
use serde_json::{Map, Value};

use super::{Global, Settings, output};

/// Rows of a continuous process without `--steps`.
const ROWS: u64 = 1000;
/// More rows than this is a mistake.
const MOST_ROWS: u64 = 1_000_000;

#[derive(Args, Debug)]
pub struct ScheduleArgs {
    /// T: the states of a discrete table, or the equal steps that a continuous process is cut into
    #[arg(long, value_name = "T")]
    steps: Option<u64>,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: ScheduleArgs, global: &Global) -> Result<()> {
    let mut value = Value::Object(Map::new());
    for assignment in &args.settings.set {
        let key = assignment.trim_start();
        if !key.starts_with("scheduler.") && !key.starts_with("process.") {
            return Err(Error::Usage(format!(
                "`schedule` reads keys under scheduler. and process. only, not `{assignment}`"
            )));
        }
        config::set(&mut value, assignment)?;
    }
    let kind = value.pointer("/process/kind").and_then(Value::as_str).unwrap_or("table");
    if let Some(steps) = args.steps {
        // A table is tied to its T.
        match kind {
            "table" => config::set(&mut value, &format!("scheduler.num_train_timesteps={steps}"))?,
            "smld" => config::set(&mut value, &format!("process.steps={steps}"))?,
            _ if !(1..=MOST_ROWS).contains(&steps) => {
                return Err(Error::Usage(format!("--steps {steps} is not in 1..={MOST_ROWS}")));
            }
            _ => {}
        }
    }
    let config = config::Config::from_value(value)?;
    let rows = match config.process.kind {
        ProcessKind::Table => config.scheduler.table()?.rows(),
        _ => {
            let process = config.process.build(&config.scheduler)?;
            schedule::rows(&*process, args.steps.unwrap_or(ROWS) as usize)
        }
    };
    print(&rows, global)
}

fn print(rows: &[Row], global: &Global) -> Result<()> {
    if global.json {
        return output::json(&rows);
    }
    let mut text = format!(
        "{:>5} {:>10} {:>12} {:>12} {:>12} {:>12} {:>12} {:>13} {:>13} {:>12} {:>12} {:>14} {:>14}",
        "t",
        "time",
        "signal",
        "std",
        "variance",
        "beta",
        "snr",
        "f",
        "g2",
        "mean_x0",
        "mean_xt",
        "variance_small",
        "variance_large"
    );
    for r in rows {
        text += &format!(
            "\n{:>5} {:>10.5} {:>12.6} {:>12.6} {:>12.6} {:>12.6e} {:>12.5e} {:>13.6e} {:>13.6e} {:>12.6} {:>12.6} {:>14.6e} {:>14.6e}",
            r.t,
            r.time,
            r.signal,
            r.std,
            r.variance,
            r.beta,
            r.snr,
            r.f,
            r.g2,
            r.mean_x0,
            r.mean_xt,
            r.variance_small,
            r.variance_large
        );
    }
    output::line(&text)
}
