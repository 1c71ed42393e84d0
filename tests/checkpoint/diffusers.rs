//! Models behind paths, and pipelines written.

use std::fs;
use std::path::Path;

use langevin::checkpoint::diffusers::{self, Kind, read_json, save_pipeline};
use serde_json::json;

use crate::support::*;

#[test]
fn a_flat_directory_and_a_pipeline_are_told_apart() {
    let flat = diffusers::open(golden("flat_fp16")).unwrap();
    assert_eq!(flat.kind, Kind::Flat);
    assert_eq!(flat.network_config["block_out_channels"], json!([4, 8]));
    assert!(flat.weights.ends_with("flat_fp16/diffusion_pytorch_model.fp16.safetensors"));
    assert!(flat.raw_weights.is_none() && flat.training.is_none() && flat.extras.is_none());
    // Python's -Infinity is not JSON.
    let scheduler = flat.scheduler_config.unwrap();
    assert_eq!(scheduler["_class_name"], "DPMSolverMultistepScheduler");
    assert_eq!(scheduler["lambda_min_clipped"], json!(f64::MIN));

    let pipeline = diffusers::open(golden("pipeline_bin")).unwrap();
    assert_eq!(pipeline.kind, Kind::Pipeline);
    assert_eq!(pipeline.scheduler_config.unwrap()["num_train_timesteps"], 50);
    assert!(pipeline.weights.ends_with("unet/diffusion_pytorch_model.bin"));

    // No scheduler is no error: DDPM's defaults apply.
    assert!(diffusers::open(golden("sharded")).unwrap().scheduler_config.is_none());
}

#[test]
fn paths_that_are_no_model_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let expect = |path: &Path, part: &str| {
        let error = diffusers::open(path).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        assert!(text.contains(part) && text.contains(&*path.to_string_lossy()), "{text}");
    };
    expect(&folder.path().join("absent"), "No such file");
    expect(&golden("reference.safetensors"), "is a file; a model is a folder");
    expect(folder.path(), "looked for checkpoints/ (a run), unet/config.json");
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    expect(folder.path(), "holds no weights; looked for diffusion_pytorch_model.safetensors");
    fs::write(folder.path().join("config.json"), "[1]").unwrap();
    expect(folder.path(), "no JSON object");
    fs::write(folder.path().join("config.json"), "{\"a\": ").unwrap();
    expect(folder.path(), "not valid JSON");
    let run = folder.path().join("run");
    fs::create_dir_all(run.join("checkpoints")).unwrap();
    expect(&run, "no checkpoint yet");
    fs::create_dir(run.join("checkpoints/step-5")).unwrap();
    expect(&run, "no valid checkpoint; 1 are damaged");
}

#[test]
fn infinities_are_replaced_outside_of_strings_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    let text = r#"{"a": -Infinity, "b": [NaN, Infinity], "NaN": "Infinity \" NaN é \\", "c": 1.5}"#;
    fs::write(&path, text).unwrap();
    assert_eq!(
        read_json(&path).unwrap(),
        json!({"a": f64::MIN, "b": [null, f64::MAX], "NaN": "Infinity \" NaN é \\", "c": 1.5})
    );
}

#[test]
fn a_pipeline_is_laid_out_as_diffusers_expects() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/deep/model");
    let mut sample = Sample::new(4);
    sample.scheduler = json!({"_class_name": "DDIMScheduler"});
    let pipeline = diffusers::Pipeline { training: None, raw: None, ..sample.pipeline() };
    save_pipeline(&path, &pipeline).unwrap();
    assert_eq!(names(&path), ["langevin.json", "model_index.json", "scheduler", "unet"]);
    assert_eq!(names(&path.join("unet")), ["config.json", "diffusion_pytorch_model.safetensors"]);
    assert_eq!(
        read_json(&path.join("model_index.json")).unwrap(),
        json!({
            "_class_name": "DDIMPipeline",
            "_diffusers_version": diffusers::DIFFUSERS_VERSION,
            "scheduler": ["diffusers", "DDIMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        })
    );
    let files = diffusers::open(&path).unwrap();
    assert_eq!((files.kind, files.raw_weights), (Kind::Pipeline, None));

    // Written again over itself, with the other scheduler and raw weights.
    let mut other = Sample::new(5);
    other.scheduler = json!({"_class_name": "DDPMScheduler", "_diffusers_version": "0.3.0"});
    save_pipeline(&path, &diffusers::Pipeline { training: None, ..other.pipeline() }).unwrap();
    let index = read_json(&path.join("model_index.json")).unwrap();
    assert_eq!(index["_class_name"], "DDPMPipeline");
    assert!(diffusers::open(&path).unwrap().raw_weights.is_some());
    let scheduler = fs::read_to_string(path.join("scheduler/scheduler_config.json")).unwrap();
    assert_eq!(scheduler.matches("_diffusers_version").count(), 1);
    assert!(scheduler.contains(diffusers::DIFFUSERS_VERSION), "{scheduler}");
    assert_eq!(names(path.parent().unwrap()), ["model"]);
}

#[test]
fn a_folder_of_other_things_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.tex"), "x").unwrap();
    let sample = Sample::new(4);
    let error = save_pipeline(folder.path(), &sample.pipeline()).unwrap_err().to_string();
    assert!(error.contains("not overwritten"), "{error}");
    assert_eq!(names(folder.path()), ["thesis.tex"]);
    let error = save_pipeline(folder.path().join("thesis.tex"), &sample.pipeline()).unwrap_err();
    assert!(error.to_string().contains("is a file, not a folder"), "{error}");
    // Neither is a pipeline to which something was added.
    let path = folder.path().join("model");
    save_pipeline(&path, &sample.pipeline()).unwrap();
    fs::write(path.join("README.md"), "x").unwrap();
    let error = save_pipeline(&path, &sample.pipeline()).unwrap_err().to_string();
    assert!(error.contains("`README.md`"), "{error}");
    assert!(path.join("README.md").exists());
    // A configuration without a class is refused before anything is written.
    let nameless = json!({});
    let pipeline = diffusers::Pipeline { network_config: &nameless, ..sample.pipeline() };
    let parent = tempfile::tempdir().unwrap();
    assert!(save_pipeline(parent.path().join("model"), &pipeline).is_err());
    assert!(names(parent.path()).is_empty());
}
