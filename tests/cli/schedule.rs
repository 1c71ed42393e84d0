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
    fail(&["schedule", "--set", "train.batch=3"], 2, &["scheduler."]);
}
