//! Training under every process, prediction and loss, end to end.

use std::path::Path;

use serde_json::{Value, json};

use crate::{fail, succeed, tiny_train};

fn extras(run: &Path, step: u64) -> Value {
    let path = run.join(format!("checkpoints/step-{step}/langevin.json"));
    serde_json::from_slice(&std::fs::read(path).expect("langevin.json")).expect("JSON")
}

/// Trains two steps with these settings and draws with the program's own choice.
fn trained(settings: &[&str]) -> (tempfile::TempDir, Value) {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    let out = run.to_str().expect("text");
    let mut more = vec!["--steps", "2"];
    more.extend(settings.iter().flat_map(|s| ["--set", s]));
    succeed(&tiny_train(out, &more));
    let extras = extras(&run, 2);
    (folder, extras)
}

#[test]
fn every_process_trains_and_its_checkpoint_says_so() {
    for (settings, kind) in [
        (&["process.kind=vp"][..], "vp"),
        (&["process.kind=sub-vp", "loss.kind=score", "loss.lambda=g2"], "sub-vp"),
        (&["process.kind=ve", "process.sigma_max=20", "denoiser.correction=true"], "ve"),
        (&["process.kind=cosine", "denoiser.prediction=v_prediction"], "cosine"),
        (&["process.kind=amplitude", "denoiser.prediction=score"], "amplitude"),
        (&["process.kind=edm", "denoiser.precondition=edm"], "edm"),
        (&["process.kind=flow", "denoiser.prediction=flow"], "flow"),
        (&["process.kind=smld", "process.steps=30", "denoiser.prediction=step_noise"], "smld"),
        (
            &[
                "process.kind=given",
                "process.table=[[0, 1, 0.01], [0.5, 0.7, 0.6], [1, 0.1, 1]]",
                "loss.kind=min-snr",
            ],
            "given",
        ),
    ] {
        let (_folder, extras) = trained(settings);
        assert_eq!(extras["process"]["kind"], kind);
        let told = extras["not_in_diffusers"].to_string();
        assert!(told.contains("process:"), "{kind}: {told}");
    }
}

#[test]
fn every_loss_of_a_chain_trains() {
    for settings in [
        &["loss.kind=vlb"][..],
        &["loss.kind=posterior-mean", "denoiser.prediction=posterior_mean"],
        &["loss.kind=two-variable", "denoiser.prediction=step_noise", "denoiser.correction=true"],
        &["loss.kind=step-noise"],
    ] {
        let (_folder, extras) = trained(settings);
        let kind = settings[0].split_once('=').expect("an assignment").1;
        assert_eq!(extras["loss"]["kind"], kind);
        assert_eq!(extras["process"], json!({"kind": "table"}));
    }
}

#[test]
fn a_learned_variance_trains_with_the_hybrid_loss() {
    let (_folder, extras) = trained(&[
        "loss.kind=hybrid",
        "scheduler.variance_type=learned_range",
        "model.out_channels=2",
    ]);
    assert_eq!(extras["loss"]["kind"], "hybrid");
}

/// The noise and the times are functions of the position in the run, also for
/// continuous times, importance sampling and log-normal ones.
#[test]
fn a_run_under_another_process_resumes_to_the_same_bits() {
    for settings in [
        ["process.kind=vp", "loss.kind=score", "loss.times=importance"],
        ["process.kind=edm", "denoiser.precondition=edm", "loss.kind=edm"],
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let weights = |name: &str| {
            let file = "checkpoints/step-4/unet/diffusion_pytorch_model.safetensors";
            std::fs::read(folder.path().join(name).join(file)).expect("weights")
        };
        let train = |name: &str, more: &[&str]| {
            let run = folder.path().join(name);
            let mut all = more.to_vec();
            all.extend(settings.iter().flat_map(|s| ["--set", s]));
            succeed(&tiny_train(run.to_str().expect("text"), &all));
        };
        train("whole", &["--steps", "4"]);
        train("halves", &["--steps", "2"]);
        train("halves", &["--steps", "4", "--resume"]);
        assert!(weights("whole") == weights("halves"), "{settings:?}");
    }
}

#[test]
fn training_refuses_what_cannot_work_before_it_begins() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let out = out.to_str().expect("text");
    let refuse = |settings: &[&str], words: &[&str]| {
        let more: Vec<&str> = settings.iter().flat_map(|s| ["--set", s]).collect();
        fail(&tiny_train(out, &more), 2, words);
        assert!(!Path::new(out).exists(), "{settings:?} left a run behind");
    };
    refuse(&["process.kind=vp", "loss.kind=vlb"], &["loss.kind", "continuous"]);
    refuse(&["process.kind=ve", "process.sigma_min=70"], &["process.sigma_min"]);
    refuse(&["denoiser.correction=true", "process.kind=flow"], &["denoiser.correction"]);
    refuse(
        &["loss.kind=hybrid", "scheduler.variance_type=learned_range"],
        &["model.out_channels", "2"],
    );
    refuse(&["scheduler.prediction_type=score"], &["denoiser.prediction"]);
    refuse(
        &["process.kind=edm", "denoiser.precondition=edm", "model.time_embedding_type=fourier"],
        &["model.time_embedding_type", "positional"],
    );
    refuse(
        &["process.kind=vp", "model.time_embedding_type=learned", "model.num_train_timesteps=250"],
        &["model.time_embedding_type", "continuous"],
    );
}
