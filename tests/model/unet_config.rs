//! Configuration, weights and operation count of the U-Net.

use langevin::Error;
use langevin::model::{Conditioning, HeadDim, Network, Nullable, UNetConfig};
use langevin::plan::Plan;
use serde_json::{Value, json};

/// ddpm-cifar10-32: its configuration, and the names and shapes of its tensors
/// as diffusers has them.
fn ddpm_cifar10() -> (UNetConfig, Value) {
    let file: Value =
        serde_json::from_str(include_str!("../golden/unet-ddpm-cifar10.json")).expect("valid JSON");
    (UNetConfig::from_json(&file["config"]).expect("valid configuration"), file["shapes"].clone())
}

#[test]
fn ddpm_cifar10_has_diffusers_names_and_shapes() {
    let (config, shapes) = ddpm_cifar10();
    let parameters = config.parameters().expect("builds");
    assert_eq!(parameters.count(), 35_746_307);
    assert_eq!(parameters.entries.len(), 328);
    let Value::Object(shapes) = shapes else { panic!("an object") };
    assert_eq!(shapes.len(), 328);
    for (name, shape) in shapes {
        let p = parameters.find(&name).unwrap_or_else(|| panic!("`{name}` is missing"));
        assert_eq!(json!(p.disk_shape), shape, "{name}");
    }
}

#[test]
fn ddpm_cifar10_forward_costs_12_44_gflop_an_image() {
    let network = Network::UNet(ddpm_cifar10().0);
    for n in [1, 3] {
        let mut plan = Plan::new();
        let inputs = network.inputs(&mut plan, n, [32, 32], false);
        network.build(&mut plan, &inputs).expect("builds");
        let gflop = plan.flops() as f64 / 1e9 / n as f64;
        assert!((gflop - 12.44).abs() < 0.005, "{gflop}");
    }
}

#[test]
fn weights_and_their_offsets_depend_neither_on_batch_nor_on_size() {
    let network = Network::UNet(ddpm_cifar10().0);
    let layout = |n, size, training| {
        let mut plan = Plan::new();
        let inputs = network.inputs(&mut plan, n, size, training);
        network.build(&mut plan, &inputs).expect("builds");
        plan.parameters.entries.iter().map(|p| (p.name.clone(), p.offset)).collect::<Vec<_>>()
    };
    let reference = layout(1, [16, 16], false);
    assert_eq!(layout(5, [32, 32], true), reference);
    assert_eq!(layout(2, [8, 64], false), reference);
}

#[test]
fn head_dim_keeps_absent_null_and_number_apart() {
    let read = |v: Value| UNetConfig::from_json(&v).expect("valid");
    let (absent, null) = (read(json!({})), read(json!({"attention_head_dim": null})));
    let number = read(json!({"attention_head_dim": 16}));
    assert_eq!(absent.attention_head_dim, HeadDim::Absent);
    assert_eq!(null.attention_head_dim, HeadDim::Given(Nullable::Null));
    assert_eq!([&absent, &null, &number].map(|c| c.attention_head_dim.resolve(64)), [8, 64, 16]);
    for config in [absent, null, number] {
        assert_eq!(read(config.to_json()), {
            let mut expected = config.clone();
            expected.extra = read(config.to_json()).extra;
            expected
        });
        let text = toml::to_string(&config).expect("writes TOML");
        assert_eq!(toml::from_str::<UNetConfig>(&text).expect("reads TOML"), config);
    }
    let json = read(json!({"attention_head_dim": null})).to_json();
    assert_eq!(json.get("attention_head_dim"), Some(&Value::Null));
    assert_eq!(read(json!({})).to_json().get("attention_head_dim"), None);
}

#[test]
fn private_keys_survive_a_round_trip() {
    let json = json!({"_class_name": "UNet2DModel", "_diffusers_version": "0.1.4", "_mine": [1],
        "decay": 0.9999, "sample_size": [8, 4], "norm_num_groups": null});
    let config = UNetConfig::from_json(&json).expect("valid");
    let written = config.to_json();
    for key in ["_class_name", "_diffusers_version", "_mine", "decay", "sample_size"] {
        assert_eq!(written[key], json[key], "{key}");
    }
    assert_eq!(written.get("norm_num_groups"), Some(&Value::Null));
    assert_eq!(UNetConfig::from_json(&written).expect("valid"), config);
}

/// A configuration that works, with some keys changed.
fn changed(change: Value) -> Value {
    let mut json = json!({
        "sample_size": 8,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "layers_per_block": 1,
    });
    for (key, value) in change.as_object().expect("an object") {
        json[key] = value.clone();
    }
    json
}

fn refusal(change: &Value) -> (String, String) {
    let result = UNetConfig::from_json(&changed(change.clone())).and_then(|c| c.validate());
    match result {
        Err(Error::Config { key, problem }) => (key, problem),
        other => panic!("{change} gave {other:?}"),
    }
}

#[test]
fn the_reference_of_the_refusals_is_valid() {
    UNetConfig::from_json(&changed(json!({}))).and_then(|c| c.validate()).expect("valid");
}

#[test]
fn inconsistent_configurations_are_refused_with_the_key() {
    let skip = json!(["SkipDownBlock2D", "SkipDownBlock2D"]);
    let cases = [
        (json!({"chanels": 3}), "model.chanels", "unknown field"),
        (json!({"_class_name": "DiTTransformer2DModel"}), "model._class_name", "UNet2DModel"),
        (json!({"layers_per_block": "two"}), "model.layers_per_block", "invalid type"),
        (json!({"in_channels": 0}), "model.in_channels", "at least 1"),
        (json!({"norm_num_groups": 3}), "model.norm_num_groups", "1, 2, 4, 8"),
        (json!({"norm_num_groups": null}), "model.norm_num_groups", "Skip or K"),
        (json!({"norm_num_groups": 0}), "model.norm_num_groups", "0 groups"),
        (json!({"attn_norm_num_groups": 5}), "model.attn_norm_num_groups", "16 channels"),
        (json!({"attention_head_dim": 32}), "model.attention_head_dim", "16 channels"),
        (json!({"attention_head_dim": "many"}), "model.attention_head_dim", "whole number"),
        (json!({"block_out_channels": [8]}), "model.down_block_types", "2 blocks"),
        (json!({"up_block_types": ["UpBlock2D"]}), "model.up_block_types", "1 blocks"),
        (
            json!({"down_block_types": ["DownBlock2D", "Down"]}),
            "model.down_block_types[1]",
            "unknown block",
        ),
        (
            json!({"up_block_types": ["UpDecoderBlock2D", "UpBlock2D"]}),
            "model.up_block_types[0]",
            "unknown block",
        ),
        (json!({"mid_block_type": "Mid"}), "model.mid_block_type", "UNetMidBlock2D"),
        (json!({"act_fn": "tanh"}), "model.act_fn", "silu"),
        (json!({"time_embedding_type": "x"}), "model.time_embedding_type", "fourier"),
        (json!({"time_embedding_type": "learned"}), "model.num_train_timesteps", "rows"),
        (json!({"freq_shift": 4}), "model.freq_shift", "zero"),
        (json!({"class_embed_type": "projection"}), "model.class_embed_type", "identity"),
        (json!({"num_class_embeds": 0}), "model.num_class_embeds", "row"),
        (json!({"resnet_time_scale_shift": "spatial"}), "model.resnet_time_scale_shift", "default"),
        (json!({"downsample_padding": 2}), "model.downsample_padding", "0 or 1"),
        (
            json!({"downsample_type": "x", "down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}),
            "model.downsample_type",
            "conv or resnet",
        ),
        (json!({"dropout": 1.0}), "model.dropout", "probability"),
        (json!({"dropout": -0.1}), "model.dropout", "probability"),
        (json!({"norm_eps": 0.0}), "model.norm_eps", "positive"),
        (json!({"mid_block_scale_factor": 0}), "model.mid_block_scale_factor", "positive"),
        (json!({"sample_size": 9}), "model.sample_size", "multiple of 2"),
        (json!({"layers_per_block": 0}), "model.layers_per_block", "8 channels to 16"),
        (json!({"down_block_types": skip, "in_channels": 1}), "model.in_channels", "3 channels"),
        (
            json!({"up_block_types": ["SkipUpBlock2D", "SkipUpBlock2D"], "out_channels": 1}),
            "model.out_channels",
            "3 channels",
        ),
        (
            json!({"up_block_types": ["SkipUpBlock2D", "UpBlock2D"]}),
            "model.up_block_types",
            "followed by Skip",
        ),
        (
            json!({"down_block_types": ["KDownBlock2D", "DownBlock2D"]}),
            "model.block_out_channels",
            "one for each 32",
        ),
        (
            json!({"down_block_types": ["KDownBlock2D", "DownBlock2D"],
                "block_out_channels": [32, 64]}),
            "model.up_block_types",
            "do not fit",
        ),
        (
            json!({"up_block_types": ["KUpBlock2D", "UpBlock2D"], "block_out_channels": [32, 64]}),
            "model.up_block_types",
            "do not fit",
        ),
    ];
    for (change, key, word) in cases {
        let (found, problem) = refusal(&change);
        assert_eq!(found, key, "{change}: {problem}");
        assert!(problem.contains(word), "{change}: {problem}");
    }
}

#[test]
fn blocks_that_diffusers_combines_are_accepted() {
    let accepted = [
        json!({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "SkipUpBlock2D"]}),
        json!({"down_block_types": ["KDownBlock2D", "DownBlock2D"],
            "up_block_types": ["KUpBlock2D", "KUpBlock2D"], "block_out_channels": [32, 64]}),
        json!({"down_block_types": ["KDownBlock2D", "KDownBlock2D"],
            "up_block_types": ["KCrossAttnUpBlock2D", "KUpBlock2D"],
            "block_out_channels": [32, 64]}),
        json!({"layers_per_block": 0, "block_out_channels": [8, 8]}),
        json!({"attention_head_dim": 12}),
        json!({"downsample_type": null, "upsample_type": null, "time_embedding_dim": 0}),
        json!({"sample_size": null, "act_fn": "SiLU"}),
    ];
    for change in accepted {
        UNetConfig::from_json(&changed(change.clone()))
            .and_then(|c| c.validate())
            .unwrap_or_else(|e| panic!("{change}: {e}"));
    }
}

#[test]
fn a_network_says_what_it_reads() {
    let network =
        |change: Value| Network::UNet(UNetConfig::from_json(&changed(change)).expect("valid"));
    let plain = network(json!({}));
    assert_eq!(
        (plain.time_input(), plain.class_input()),
        (Conditioning::Value, Conditioning::Absent)
    );
    assert_eq!(plain.sample_shape(), Some([8, 8, 3]));
    let table = network(json!({"num_class_embeds": 11}));
    assert_eq!((table.class_input(), table.classes()), (Conditioning::Row(11), Some(11)));
    let learned = network(json!({"time_embedding_type": "learned", "num_train_timesteps": 20,
        "class_embed_type": "timestep"}));
    assert_eq!(learned.time_input(), Conditioning::Row(20));
    assert_eq!(learned.class_input(), Conditioning::Row(20));
    let vector = network(json!({"class_embed_type": "identity"}));
    assert_eq!((vector.class_input(), vector.classes()), (Conditioning::Vector(32), None));
}

#[test]
fn images_that_do_not_halve_evenly_are_refused() {
    let config = UNetConfig::from_json(&changed(json!({"sample_size": null}))).expect("valid");
    let network = Network::UNet(config);
    let mut plan = Plan::new();
    let inputs = network.inputs(&mut plan, 1, [8, 7], false);
    let error = network.build(&mut plan, &inputs).expect_err("7 is odd");
    assert!(error.to_string().contains("multiples of 2"), "{error}");
}
