//! What a training run reports of its steps: one record per logged step, kept
//! as JSON lines and as CSV.
//!
//! Both files grow while the run goes on and are forced to disk with each
//! checkpoint ([`MetricsLog::flush`]). A run that resumes at step s drops what
//! lies past s ([`MetricsLog::resume`]), so that N + M steps in two goes leave
//! the same records as in one, wall-clock fields excepted. A line cut short by
//! a crash lies past the last checkpoint and is dropped with it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// Name of the JSON lines file in a run's directory.
pub const JSONL: &str = "metrics.jsonl";
/// Name of the CSV file in a run's directory.
pub const CSV: &str = "metrics.csv";

/// One logged step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Optimizer steps done, counted from 1.
    pub step: u64,
    /// Training examples seen since the start of the run.
    pub images_seen: u64,
    /// Passes over the data; whole numbers end one.
    #[serde(deserialize_with = "number")]
    pub epoch: f64,
    /// Mean weighted loss of the step.
    #[serde(deserialize_with = "number")]
    pub loss: f32,
    /// Mean loss of the examples whose time fell in each quarter of [0, 1],
    /// data end first; none where no example fell in it.
    pub loss_quartiles: [Option<f32>; 4],
    /// Euclidean norm of the whole gradient before clipping.
    #[serde(deserialize_with = "number")]
    pub gradient_norm: f32,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Decay of the averaged weights at the step.
    pub ema_decay: f64,
    /// Wall-clock seconds of training so far.
    pub seconds: f64,
    /// Training examples a second since the record before.
    #[serde(deserialize_with = "number")]
    pub images_per_second: f64,
}

/// JSON has no NaN: it is written as null.
fn number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + From<f32>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or(T::from(f32::NAN)))
}

const CSV_HEAD: &str = "step,images_seen,epoch,loss,loss_quartile_1,loss_quartile_2,\
                        loss_quartile_3,loss_quartile_4,gradient_norm,learning_rate,ema_decay,\
                        seconds,images_per_second\n";

/// Means of the loss over the quarters of time, gathered example by example.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quartiles {
    sum: [f64; 4],
    count: [u64; 4],
}

impl Quartiles {
    /// Adds the loss of an example at `time` in [0, 1] (label / T for a
    /// discrete table).
    pub fn add(&mut self, time: f64, loss: f32) {
        let quarter = ((time * 4.0) as usize).min(3);
        self.sum[quarter] += f64::from(loss);
        self.count[quarter] += 1;
    }

    /// Mean loss of each quarter, none where nothing was added.
    pub fn mean(&self) -> [Option<f32>; 4] {
        std::array::from_fn(|quarter| {
            let count = self.count[quarter];
            (count > 0).then(|| (self.sum[quarter] / count as f64) as f32)
        })
    }
}

/// The growing metrics files of a run.
pub struct MetricsLog {
    jsonl: BufWriter<File>,
    csv: csv::Writer<File>,
    jsonl_path: PathBuf,
    csv_path: PathBuf,
    /// Line under construction; kept so that a step allocates nothing.
    line: Vec<u8>,
}

impl MetricsLog {
    /// Starts empty files in the run's directory.
    pub fn create(run: &Path) -> Result<MetricsLog> {
        let log = [(JSONL, ""), (CSV, CSV_HEAD)];
        for (name, head) in log {
            let path = run.join(name);
            fs::write(&path, head).map_err(Error::file("cannot write", &path))?;
        }
        MetricsLog::append(run)
    }

    /// Takes up the files of a run that goes on after `step`: records past it,
    /// and a damaged tail, are dropped. Missing files are started anew.
    pub fn resume(run: &Path, step: u64) -> Result<MetricsLog> {
        let path = run.join(JSONL);
        let (records, bytes) = match fs::read(&path) {
            Ok(text) => leading(&text, step),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return MetricsLog::create(run);
            }
            Err(error) => return Err(Error::file("cannot read", &path)(error)),
        };
        truncate(&path, bytes)?;

        let path = run.join(CSV);
        let text = fs::read(&path).unwrap_or_default();
        match leading_csv(&text, step) {
            Some((steps, bytes)) if steps.iter().copied().eq(records.iter().map(|r| r.step)) => {
                truncate(&path, bytes)?;
                return MetricsLog::append(run);
            }
            _ => {}
        }
        // Lost or edited: written again from the JSON lines.
        fs::write(&path, CSV_HEAD).map_err(Error::file("cannot write", &path))?;
        let mut log = MetricsLog::append(run)?;
        for record in &records {
            log.push_csv(record)?;
        }
        Ok(log)
    }

    fn append(run: &Path) -> Result<MetricsLog> {
        let open = |path: &Path| {
            OpenOptions::new().append(true).open(path).map_err(Error::file("cannot write", path))
        };
        let (jsonl_path, csv_path) = (run.join(JSONL), run.join(CSV));
        Ok(MetricsLog {
            jsonl: BufWriter::new(open(&jsonl_path)?),
            csv: csv::WriterBuilder::new().has_headers(false).from_writer(open(&csv_path)?),
            jsonl_path,
            csv_path,
            line: Vec::with_capacity(512),
        })
    }

    /// Adds a record; it reaches the disk with the next [`MetricsLog::flush`]
    /// at the latest.
    pub fn push(&mut self, record: &Record) -> Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, record).expect("a record has no odd keys");
        self.line.push(b'\n');
        self.jsonl.write_all(&self.line).map_err(Error::file("cannot write", &self.jsonl_path))?;
        self.push_csv(record)
    }

    fn push_csv(&mut self, record: &Record) -> Result<()> {
        self.csv
            .serialize(record)
            .map_err(|error| Error::file("cannot write", &self.csv_path)(error.into()))
    }

    /// Forces all records to disk; to be called before a checkpoint counts as
    /// written.
    pub fn flush(&mut self) -> Result<()> {
        self.jsonl
            .flush()
            .and_then(|()| self.jsonl.get_ref().sync_data())
            .map_err(Error::file("cannot write", &self.jsonl_path))?;
        self.csv
            .flush()
            .and_then(|()| self.csv.get_ref().sync_data())
            .map_err(Error::file("cannot write", &self.csv_path))
    }
}

/// The records of a run, up to the first damaged line; empty if there is no file.
pub fn read(run: &Path) -> Result<Vec<Record>> {
    let path = run.join(JSONL);
    match fs::read(&path) {
        Ok(text) => Ok(leading(&text, u64::MAX).0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::file("cannot read", &path)(error)),
    }
}

/// The whole, rising records up to `step` at the start of `text`, and their bytes.
fn leading(text: &[u8], step: u64) -> (Vec<Record>, usize) {
    let mut records: Vec<Record> = Vec::new();
    let mut bytes = 0;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let Ok(record) = serde_json::from_slice::<Record>(line) else { break };
        let rises = records.last().is_none_or(|last| last.step < record.step);
        if !line.ends_with(b"\n") || !rises || record.step > step {
            break;
        }
        bytes += line.len();
        records.push(record);
    }
    (records, bytes)
}

/// Steps of the whole rows up to `step` at the start of the CSV `text`, and
/// their bytes; none if the head is not the one written here.
fn leading_csv(text: &[u8], step: u64) -> Option<(Vec<u64>, usize)> {
    let mut steps = Vec::new();
    let rows = text.strip_prefix(CSV_HEAD.as_bytes())?;
    let fields = CSV_HEAD.split(',').count();
    let mut bytes = CSV_HEAD.len();
    for row in rows.split_inclusive(|&byte| byte == b'\n') {
        let Ok(text) = std::str::from_utf8(row) else { break };
        let of_row = text.split(',').next().and_then(|field| field.parse::<u64>().ok());
        match of_row {
            Some(of_row)
                if of_row <= step && text.ends_with('\n') && text.split(',').count() == fields =>
            {
                steps.push(of_row);
                bytes += row.len();
            }
            _ => break,
        }
    }
    Some((steps, bytes))
}

fn truncate(path: &Path, bytes: usize) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(bytes as u64))
        .map_err(Error::file("cannot write", path))
}
