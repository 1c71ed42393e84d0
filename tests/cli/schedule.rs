use crate::{fail, langevin, succeed};

fn rows(arguments: &[&str]) -> Vec<serde_json::Value> {
    let output = succeed(arguments);
    serde_json::from_slice(&output.stdout).expect("a JSON list")
}

#[test]
fn linear_schedule_of_500_steps_ends_where_the_design_says() {
    let rows = rows(&["schedule", "--steps", "500", "--json"]);
    assert_eq!(rows.len(), 500);
    let last = &rows[499];
    let value = |key: &str| last[key].as_f64().expect(key);
    assert_eq!(last["t"], 499);
    assert!((value("signal") - 0.079704).abs() < 5e-7, "{last}");
    assert!((value("variance") - 0.993647).abs() < 5e-7, "{last}");
    assert!((value("std") - 0.993647f64.sqrt()).abs() < 5e-7, "{last}");
    assert!((value("beta") - 0.02).abs() < 1e-12);
    let keys = [
        "t",
        "signal",
        "std",
        "variance",
        "beta",
        "snr",
        "mean_x0",
        "mean_xt",
        "variance_small",
        "variance_large",
        "time",
        "f",
        "g2",
    ];
    assert_eq!(last.as_object().expect("a row").keys().collect::<Vec<_>>(), keys);
}

#[test]
fn schedule_takes_the_fields_of_diffusers() {
    let cosine = rows(&[
        "schedule",
        "--steps",
        "100",
        "--json",
        "--set",
        "scheduler.beta_schedule=squaredcos_cap_v2",
    ]);
    // An integer division in other ports of this formula leaves 99 betas at 0.
    assert!(cosine.iter().all(|r| r["beta"].as_f64().expect("beta") > 0.0));
    let zero = rows(&["schedule", "--json", "--set", "scheduler.rescale_betas_zero_snr=true"]);
    assert_eq!(zero.len(), 1000);
    assert_eq!(zero[999]["signal"].as_f64(), Some(0.0));
}

#[test]
fn schedule_prints_a_table_for_people() {
    let output = langevin(&["schedule", "--steps", "10"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(text.lines().count(), 11);
    assert!(text.lines().next().is_some_and(|head| head.contains("variance_small")));
}

#[test]
fn schedule_refuses_what_is_out_of_range() {
    fail(&["schedule", "--steps", "0"], 2, &["num_train_timesteps"]);
    fail(&["schedule", "--set", "scheduler.beta_end=2"], 2, &["scheduler.beta_end"]);
    fail(&["schedule", "--set", "scheduler.beta_ned=0.1"], 2, &["beta_ned"]);
    fail(&["schedule", "--set", "train.batch=3"], 2, &["scheduler.", "process."]);
}

#[test]
fn schedule_prints_every_process_at_any_number_of_steps() {
    for (kind, t_last) in [
        ("smld", 4.0),
        ("vp", 1.0),
        ("sub-vp", 1.0),
        ("ve", 1.0),
        ("cosine", 0.9946),
        ("amplitude", 1.0),
        ("edm", 80.0),
        ("flow", 1.0),
    ] {
        let kind = format!("process.kind={kind}");
        let rows = rows(&["schedule", "--steps", "4", "--json", "--set", &kind]);
        assert_eq!(rows.len(), 4, "{kind}");
        assert_eq!(rows[3]["time"].as_f64(), Some(t_last), "{kind}");
        let snr: Vec<f64> = rows.iter().map(|r| r["snr"].as_f64().expect("snr")).collect();
        assert!(snr.windows(2).all(|w| w[0] > w[1]), "{kind}: {snr:?}");
        assert!(rows[..3].iter().all(|r| r["f"].is_number() && r["g2"].is_number()), "{kind}");
    }
    let vp = rows(&["schedule", "--steps", "10", "--json", "--set", "process.kind=vp"]);
    assert!((vp[9]["beta"].as_f64().expect("beta") - 2.0).abs() < 1e-12);
    let given = "process.table=[[0, 1, 0.1], [0.5, 0.9, 0.5], [1, 0.5, 2]]";
    let rows = rows(&[
        "schedule",
        "--steps",
        "2",
        "--json",
        "--set",
        "process.kind=given",
        "--set",
        given,
    ]);
    assert!((rows[0]["std"].as_f64().expect("std") - 0.5).abs() < 1e-12);
}

#[test]
fn schedule_refuses_processes_that_cannot_be() {
    let refuse = |set: &[&str], words: &[&str]| {
        let mut arguments = vec!["schedule"];
        arguments.extend(set.iter().flat_map(|s| ["--set", s]));
        fail(&arguments, 2, words);
    };
    refuse(&["process.kind=ve", "process.sigma_min=60"], &["process.sigma_min", "below"]);
    refuse(&["process.kind=vp", "process.sigma_max=60"], &["process.sigma_max", "not read"]);
    refuse(&["process.kind=vp", "process.t_eps=2"], &["process.t_eps", "before the end"]);
    refuse(&["process.kind=given"], &["process.table", "two entries"]);
    let rising = "process.table=[[0, 1, 0.5], [1, 1, 0.4]]";
    refuse(&["process.kind=given", rising], &["process.table", "SNR must fall"]);
    refuse(&["process.kind=smld", "process.steps=0"], &["process.steps", "too few"]);
    refuse(&["process.kind=whirl"], &["process.kind", "sub-vp"]);
    fail(&["schedule", "--steps", "0", "--set", "process.kind=vp"], 2, &["--steps 0"]);
}
