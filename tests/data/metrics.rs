use std::fs;
use std::path::Path;

use langevin::train::metrics::{self, CSV, JSONL, MetricsLog, Quartiles, Record};

fn record(step: u64) -> Record {
    let quarter = step as f32 / 7.0;
    Record {
        step,
        images_seen: step * 32,
        epoch: step as f64 / 3.0,
        loss: 1.0 / (step as f32 + 0.1),
        loss_quartiles: [Some(quarter), None, Some(0.1), Some(1e-9)],
        gradient_norm: 0.3,
        learning_rate: 2e-4,
        ema_decay: 0.995,
        seconds: step as f64,
        images_per_second: 1234.5,
    }
}

fn push(log: &mut MetricsLog, steps: impl IntoIterator<Item = u64>) {
    for step in steps {
        log.push(&record(step)).unwrap();
    }
    log.flush().unwrap();
}

fn files(run: &Path) -> [Vec<u8>; 2] {
    [JSONL, CSV].map(|name| fs::read(run.join(name)).unwrap())
}

#[test]
fn records_come_back_as_they_were_written() {
    let run = tempfile::tempdir().unwrap();
    assert_eq!(metrics::read(run.path()).unwrap(), []);
    let mut log = MetricsLog::create(run.path()).unwrap();
    push(&mut log, [10, 20, 30]);
    assert_eq!(metrics::read(run.path()).unwrap(), [10, 20, 30].map(record));
    let csv = fs::read_to_string(run.path().join(CSV)).unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[0].starts_with("step,images_seen,epoch,loss,loss_quartile_1,"));
    assert!(lines.iter().all(|line| line.split(',').count() == lines[0].split(',').count()));
    // The empty quartile is an empty field.
    assert!(lines[1].starts_with("10,320,") && lines[1].contains(",,0.1,"), "{}", lines[1]);
}

#[test]
fn resuming_leaves_the_bytes_of_one_go() {
    let whole = tempfile::tempdir().unwrap();
    push(&mut MetricsLog::create(whole.path()).unwrap(), (1..=9).map(|i| i * 10));
    // Went on to step 70, checkpoint at 50, then resumed to 90.
    let split = tempfile::tempdir().unwrap();
    push(&mut MetricsLog::create(split.path()).unwrap(), (1..=7).map(|i| i * 10));
    push(&mut MetricsLog::resume(split.path(), 50).unwrap(), (6..=9).map(|i| i * 10));
    assert_eq!(files(split.path()), files(whole.path()));
    // A checkpoint between two records keeps the earlier one.
    push(&mut MetricsLog::resume(split.path(), 45).unwrap(), (5..=9).map(|i| i * 10));
    assert_eq!(files(split.path()), files(whole.path()));
    // From the start.
    push(&mut MetricsLog::resume(split.path(), 0).unwrap(), (1..=9).map(|i| i * 10));
    assert_eq!(files(split.path()), files(whole.path()));
}

#[test]
fn a_crash_in_the_midst_of_a_line_past_the_checkpoint_leaves_a_run_that_resumes() {
    let whole = tempfile::tempdir().unwrap();
    push(&mut MetricsLog::create(whole.path()).unwrap(), 1..=6);
    let expected = files(whole.path());
    // Bytes of each file up to step 3's record.
    let kept = expected.clone().map(|bytes| {
        let header = usize::from(bytes.starts_with(b"step"));
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        ends.map(|(at, _)| at + 1).nth(2 + header).unwrap()
    });
    let run = tempfile::tempdir().unwrap();
    for cut in (0..=expected[0].len() - kept[0]).step_by(5) {
        let lens = [kept[0] + cut, (kept[1] + cut / 2).min(expected[1].len())];
        for ((name, bytes), len) in [JSONL, CSV].iter().zip(&expected).zip(lens) {
            let mut damaged = bytes[..len].to_vec();
            if cut % 3 == 0 && len < bytes.len() {
                damaged.extend([0; 17]);
            }
            fs::write(run.path().join(name), damaged).unwrap();
        }
        let mut log = MetricsLog::resume(run.path(), 3).unwrap();
        assert_eq!(metrics::read(run.path()).unwrap(), [1, 2, 3].map(record));
        push(&mut log, 4..=6);
        assert_eq!(files(run.path()), expected, "cut after {cut} bytes");
    }
}

#[test]
fn a_lost_or_edited_csv_is_written_again() {
    let run = tempfile::tempdir().unwrap();
    push(&mut MetricsLog::create(run.path()).unwrap(), 1..=6);
    let expected = files(run.path());
    let csv = run.path().join(CSV);
    for damage in [None, Some("1,2,3\n"), Some("")] {
        match damage {
            None => fs::remove_file(&csv).unwrap(),
            Some(text) => fs::write(&csv, text).unwrap(),
        }
        push(&mut MetricsLog::resume(run.path(), 4).unwrap(), 5..=6);
        assert_eq!(files(run.path()), expected);
    }
    fs::remove_file(run.path().join(JSONL)).unwrap();
    push(&mut MetricsLog::resume(run.path(), 0).unwrap(), 1..=6);
    assert_eq!(files(run.path()), expected);
}

#[test]
fn a_number_that_is_not_finite_survives_as_not_a_number() {
    let run = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::create(run.path()).unwrap();
    log.push(&Record { gradient_norm: f32::INFINITY, ..record(1) }).unwrap();
    push(&mut log, [2]);
    let records = metrics::read(run.path()).unwrap();
    assert!(records[0].gradient_norm.is_nan() && records.len() == 2);
}

#[test]
fn an_unwritable_directory_is_named() {
    let run = tempfile::tempdir().unwrap();
    let missing = run.path().join("gone");
    let error = MetricsLog::create(&missing).err().unwrap();
    assert_eq!(error.exit_code(), 1);
    crate::assert_says(&error, &["cannot write", "gone"]);
}

#[test]
fn quartiles_average_what_fell_in_each() {
    let mut quartiles = Quartiles::default();
    assert_eq!(quartiles.mean(), [None; 4]);
    for (time, loss) in [(0.0, 1.0), (0.2499, 3.0), (0.25, 5.0), (0.999, 7.0), (1.0, 9.0)] {
        quartiles.add(time, loss);
    }
    assert_eq!(quartiles.mean(), [Some(2.0), Some(5.0), None, Some(8.0)]);
}
