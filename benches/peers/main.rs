//! This engine against PyTorch, in one run, interleaved.
//!
//! ```text
//! LANGEVIN_PYTHON=/path/to/python cargo bench --bench peers [-- [--rounds N] [--threads N] [FILTER]]
//! ```
//! The Python needs torch (and diffusers for the whole network). Both programs
//! compute with the same number of threads (2 unless told otherwise), in turns,
//! so that what else the machine does disturbs both; medians and minima are
//! printed, and the ratio of PyTorch's time to ours: above 1 we are faster.

mod cases;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// PyTorch in a process of its own.
struct Peer {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &str, threads: usize) -> anyhow::Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/pytorch.py");
        let mut child = Command::new(python)
            .arg(script)
            .env("OMP_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Ok(Peer { child, requests, answers })
    }

    fn ask(&mut self, request: Value) -> anyhow::Result<Value> {
        writeln!(self.requests, "{request}")?;
        let mut line = String::new();
        anyhow::ensure!(self.answers.read_line(&mut line)? > 0, "the Python process ended");
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Times(Vec<f64>);

impl Times {
    fn minimum(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }
    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

fn main() -> anyhow::Result<()> {
    let Ok(python) = std::env::var("LANGEVIN_PYTHON") else {
        println!("peers: set LANGEVIN_PYTHON to a Python with torch to compare with it");
        return Ok(());
    };
    let (mut rounds, mut threads, mut filter) = (7, 2, String::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> anyhow::Result<usize> {
            Ok(arguments.next().ok_or_else(|| anyhow::anyhow!("a number is missing"))?.parse()?)
        };
        match argument.as_str() {
            "--rounds" => rounds = number()?,
            "--threads" => threads = number()?,
            // Cargo's own flag.
            "--bench" => {}
            other => filter = other.to_string(),
        }
    }
    let mut peer = Peer::start(&python, threads)?;
    let version = peer.ask(json!({}))?;
    println!(
        "langevin {} ({}), PyTorch {} eager, {} threads each, {rounds} rounds",
        env!("CARGO_PKG_VERSION"),
        cases::description(threads),
        version["version"].as_str().unwrap_or("?"),
        version["threads"],
    );
    println!(
        "{:<56} {:>9} {:>9} {:>7} | {:>9} {:>9} {:>7} {:<5} | {:>6} {:>6}",
        "times in ms",
        "minimum",
        "median",
        "GFLOP/s",
        "minimum",
        "median",
        "GFLOP/s",
        "",
        "min",
        "median"
    );
    for case in cases::layers() {
        let name = format!("{} {}", case.group().trim_end_matches("/cpu"), case.shape());
        if !name.contains(&filter) {
            continue;
        }
        let mut ours = case.prepare(threads)?;
        let variant = peer.ask(json!({ "case": case.request() }))?;
        ours();
        // Enough runs a turn to fill about 50 ms.
        let start = Instant::now();
        ours();
        let runs = (0.05 / start.elapsed().as_secs_f64().max(1e-6)).clamp(1.0, 200.0) as usize;
        let (mut mine, mut theirs) = (Times(Vec::new()), Times(Vec::new()));
        for _ in 0..rounds {
            // The other's threads spin for a while after their last job.
            std::thread::sleep(Duration::from_millis(20));
            ours();
            for _ in 0..runs {
                let start = Instant::now();
                ours();
                mine.0.push(start.elapsed().as_secs_f64());
            }
            let answer = peer.ask(json!({ "run": runs }))?;
            theirs.0.extend(
                answer["seconds"].as_array().into_iter().flatten().filter_map(Value::as_f64),
            );
        }
        let rate = |seconds: f64| case.flops() as f64 / seconds / 1e9;
        println!(
            "{:<56} {:>9.3} {:>9.3} {:>7.1} | {:>9.3} {:>9.3} {:>7.1} {:<5} | {:>6.2} {:>6.2}",
            name,
            mine.minimum() * 1e3,
            mine.median() * 1e3,
            rate(mine.minimum()),
            theirs.minimum() * 1e3,
            theirs.median() * 1e3,
            rate(theirs.minimum()),
            variant["variant"].as_str().unwrap_or(""),
            theirs.minimum() / mine.minimum(),
            theirs.median() / mine.median(),
        );
    }
    Ok(())
}
