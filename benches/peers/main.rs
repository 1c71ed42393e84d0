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
mod network;
#[allow(dead_code)] // `--bench streams` uses the rest.
mod streams;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cases::Case;
use langevin::backend::Backend;
use langevin::backend::cpu::Cpu;
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

/// One line of the table.
struct Comparison {
    name: String,
    flops: u64,
    /// The case, for the peer.
    request: Value,
    prepare: Box<dyn Fn(usize) -> anyhow::Result<cases::Run>>,
}

fn comparisons() -> anyhow::Result<Vec<Comparison>> {
    let network = |pass: &str, n: usize| json!({ "op": "unet", "pass": pass, "n": n, "config": network::CONFIG });
    let mut all = Vec::new();
    for n in [1, 16] {
        let flops = network::forward_flops(n)?;
        all.push(Comparison {
            name: format!("ddpm-cifar10 forward n{n}"),
            flops,
            request: network("forward", n),
            prepare: Box::new(move |threads| network::forward(threads, n)),
        });
    }
    let flops = 3 * network::forward_flops(16)?;
    all.push(Comparison {
        name: "ddpm-cifar10 training step n16".into(),
        flops,
        request: network("training_step", 16),
        prepare: Box::new(|threads| network::training_step(threads, 16)),
    });
    all.extend(cases::layers().into_iter().map(|case| Comparison {
        name: format!("{} {}", case.group().trim_end_matches("/cpu"), case.shape()),
        flops: case.flops(),
        request: request(&case),
        prepare: Box::new(move |threads| case.prepare(threads)),
    }));
    all.extend(streams::streams().into_iter().map(|stream| Comparison {
        name: format!("{} {}", stream.group.trim_end_matches("/cpu"), stream.shape),
        flops: 0,
        request: stream.request,
        prepare: Box::new(move |threads| Ok((stream.prepare)(threads))),
    }));
    Ok(all)
}

/// A layer in the words of the Python side.
fn request(case: &Case) -> Value {
    match case {
        Case::Conv2d(op, pass) => {
            let p = op.options.padding;
            json!({
                "op": "conv2d", "pass": pass.name(), "n": op.n, "h": op.h, "w": op.w,
                "c_in": op.c_in, "c_out": op.c_out, "kernel": op.kernel[0],
                "stride": op.options.stride[0],
                "padding": [p.top, p.left, p.bottom, p.right],
            })
        }
        Case::Linear(op, pass) => json!({
            "op": "linear", "pass": pass.name(),
            "rows": op.rows, "c_in": op.c_in, "c_out": op.c_out,
        }),
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
        Cpu::new(threads).info().description,
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
    for case in comparisons()? {
        if !case.name.contains(&filter) {
            continue;
        }
        let mut ours = (case.prepare)(threads)?;
        let variant = peer.ask(json!({ "case": case.request }))?;
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
        let rate = |seconds: f64| case.flops as f64 / seconds / 1e9;
        println!(
            "{:<56} {:>9.3} {:>9.3} {:>7.1} | {:>9.3} {:>9.3} {:>7.1} {:<5} | {:>6.2} {:>6.2}",
            case.name,
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
