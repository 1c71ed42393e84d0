//! `langevin schedule`: the table of a noise schedule.

use clap::Args;
use langevin::config;
use langevin::diffusion::scheduler::SchedulerConfig;
use langevin::{Error, Result};
use serde_json::{Map, Value};

use super::{Global, Settings, output};

#[derive(Args, Debug)]
pub struct ScheduleArgs {
    /// T, the number of training steps; short for --set scheduler.num_train_timesteps=T
    #[arg(long, value_name = "T")]
    steps: Option<u64>,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: ScheduleArgs, global: &Global) -> Result<()> {
    let mut value = Value::Object(Map::new());
    for assignment in &args.settings.set {
        if !assignment.trim_start().starts_with("scheduler.") {
            return Err(Error::Usage(format!(
                "`schedule` reads keys under scheduler. only, not `{assignment}`"
            )));
        }
        config::set(&mut value, assignment)?;
    }
    if let Some(steps) = args.steps {
        config::set(&mut value, &format!("scheduler.num_train_timesteps={steps}"))?;
    }
    let config = config::Config::from_value(value)?;
    print(&config.scheduler, global)
}

fn print(scheduler: &SchedulerConfig, global: &Global) -> Result<()> {
    let rows = scheduler.table()?.rows();
    if global.json {
        return output::json(&rows);
    }
    let mut text = format!(
        "{:>5} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12} {:>14} {:>14}",
        "t",
        "signal",
        "std",
        "variance",
        "beta",
        "snr",
        "mean_x0",
        "mean_xt",
        "variance_small",
        "variance_large"
    );
    for r in &rows {
        text += &format!(
            "\n{:>5} {:>12.6} {:>12.6} {:>12.6} {:>12.6e} {:>12.5e} {:>12.6} {:>12.6} {:>14.6e} {:>14.6e}",
            r.t,
            r.signal,
            r.std,
            r.variance,
            r.beta,
            r.snr,
            r.mean_x0,
            r.mean_xt,
            r.variance_small,
            r.variance_large
        );
    }
    output::line(&text)
}
