//! Configuration of the U-Net: the fields, names and defaults of diffusers'
//! `UNet2DModel`, read from and written to its `config.json`.

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::Conditioning;
use crate::error::{Error, Result};

/// The class named in `config.json`.
pub const CLASS_NAME: &str = "UNet2DModel";

/// The diffusers release whose format is written.
const DIFFUSERS_VERSION: &str = "0.42.1";

/// Keys that diffusers' EMA helper writes beside the network's own; they are
/// kept and not read.
const EMA_KEYS: [&str; 7] = [
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
];

/// A value whose absence (the default) differs from null. Null is `null` in
/// JSON and `"none"` where a format has no null (TOML); both are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nullable<T> {
    /// null
    Null,
    /// The value.
    Value(T),
}

impl<T> Nullable<T> {
    /// The value, if there is one.
    pub fn value(&self) -> Option<&T> {
        match self {
            Nullable::Null => None,
            Nullable::Value(v) => Some(v),
        }
    }
}

const NULL: &str = "none";

impl<T: Serialize> Serialize for Nullable<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Nullable::Null => serializer.serialize_str(NULL),
            Nullable::Value(v) => v.serialize(serializer),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Word<T> {
    Value(T),
    Text(String),
}

impl<'de> Deserialize<'de> for Nullable<usize> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let word = Option::<Word<usize>>::deserialize(d)
            .map_err(|_| de::Error::custom("expected a whole number or null"))?;
        match word {
            None => Ok(Nullable::Null),
            Some(Word::Value(v)) => Ok(Nullable::Value(v)),
            Some(Word::Text(t)) if is_null(&t) => Ok(Nullable::Null),
            Some(Word::Text(t)) => {
                Err(de::Error::custom(format!("`{t}` is neither a whole number nor `{NULL}`")))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Nullable<String> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(match Option::<String>::deserialize(d)? {
            Some(t) if !is_null(&t) => Nullable::Value(t),
            _ => Nullable::Null,
        })
    }
}

fn is_null(text: &str) -> bool {
    text.eq_ignore_ascii_case(NULL) || text == "null"
}

/// Channels of one attention head. diffusers' default is 8; null is one head
/// over all channels, which is what DDPM trained. Copies of the same checkpoint
/// differ here, so absence is kept apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HeadDim {
    /// The key is not there: 8.
    #[default]
    Absent,
    /// null or a number.
    Given(Nullable<usize>),
}

impl HeadDim {
    fn is_absent(&self) -> bool {
        *self == HeadDim::Absent
    }

    /// Channels of one head of an attention over `channels`.
    pub fn resolve(&self, channels: usize) -> usize {
        match self {
            HeadDim::Absent => 8,
            HeadDim::Given(Nullable::Null) => channels,
            HeadDim::Given(Nullable::Value(dim)) => *dim,
        }
    }

    /// What was taken, for people.
    pub fn describe(&self) -> String {
        match self {
            HeadDim::Absent => "8 channels a head (key absent: diffusers' default)".into(),
            HeadDim::Given(Nullable::Null) => "one head (null)".into(),
            HeadDim::Given(Nullable::Value(dim)) => format!("{dim} channels a head"),
        }
    }
}

impl Serialize for HeadDim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            HeadDim::Absent => Nullable::Value(8usize).serialize(serializer),
            HeadDim::Given(dim) => dim.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for HeadDim {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Nullable::deserialize(d).map(HeadDim::Given)
    }
}

/// Height and width of the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SampleSize {
    /// Both sides.
    Square(usize),
    /// `[height, width]`.
    Sides([usize; 2]),
}

impl SampleSize {
    /// Rows.
    pub fn height(self) -> usize {
        match self {
            SampleSize::Square(s) => s,
            SampleSize::Sides([h, _]) => h,
        }
    }
    /// Columns.
    pub fn width(self) -> usize {
        match self {
            SampleSize::Square(s) => s,
            SampleSize::Sides([_, w]) => w,
        }
    }
}

fn null_is_conv<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(d)?.unwrap_or_else(|| "conv".into()))
}

/// `UNet2DModel`: field names, meanings and defaults are diffusers'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UNetConfig {
    /// Size of the images; `None` takes any that fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_size: Option<SampleSize>,
    /// Channels of x.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Whether x in \[0, 1\] is mapped to 2x - 1 first.
    pub center_input_sample: bool,
    /// `positional` (sinusoidal), `fourier` (of ln t) or `learned` (a table).
    pub time_embedding_type: String,
    /// Channels of the time embedding; `None` or 0 takes four times the first block's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_embedding_dim: Option<usize>,
    /// Shift in the denominator of the sinusoidal frequencies.
    pub freq_shift: f64,
    /// Cosines before sines.
    pub flip_sin_to_cos: bool,
    /// Blocks of the way down, finest first.
    pub down_block_types: Vec<String>,
    /// `UNetMidBlock2D` or null.
    pub mid_block_type: Nullable<String>,
    /// Blocks of the way up, coarsest first.
    pub up_block_types: Vec<String>,
    /// Channels of each level, finest first.
    pub block_out_channels: Vec<usize>,
    /// ResNet layers of a down block; up blocks have one more.
    pub layers_per_block: usize,
    /// Residual sums of the middle block are divided by it.
    pub mid_block_scale_factor: f64,
    /// Padding of the strided convolutions; 0 pads right and bottom by one.
    pub downsample_padding: usize,
    /// `conv` or `resnet`, for AttnDownBlock2D.
    #[serde(deserialize_with = "null_is_conv")]
    pub downsample_type: String,
    /// `conv` or `resnet`, for AttnUpBlock2D.
    #[serde(deserialize_with = "null_is_conv")]
    pub upsample_type: String,
    /// Probability of dropping, in the ResNet layers.
    pub dropout: f64,
    /// `silu`, `swish`, `gelu`, `relu` or `mish`.
    pub act_fn: String,
    /// Channels of one attention head.
    #[serde(skip_serializing_if = "HeadDim::is_absent")]
    pub attention_head_dim: HeadDim,
    /// Groups of the normalisations; null only where no block reads it.
    pub norm_num_groups: Nullable<usize>,
    /// Groups of the normalisation before the middle attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attn_norm_num_groups: Option<usize>,
    /// Added to variances.
    pub norm_eps: f64,
    /// `default` (added) or `scale_shift` (after the second normalisation).
    pub resnet_time_scale_shift: String,
    /// Whether the middle block has attention.
    pub add_attention: bool,
    /// None, `timestep` or `identity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_embed_type: Option<String>,
    /// Rows of the class table (`class_embed_type` None).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_class_embeds: Option<usize>,
    /// Rows of the time table (`time_embedding_type` learned).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_train_timesteps: Option<usize>,
    /// Keys of a `config.json` that start with `_` and those of diffusers' EMA
    /// helper: not read, written back.
    #[serde(skip)]
    pub extra: Map<String, Value>,
}

impl Default for UNetConfig {
    fn default() -> Self {
        let types = |names: [&str; 4]| names.map(String::from).to_vec();
        let attn = ["AttnDownBlock2D", "AttnUpBlock2D"];
        UNetConfig {
            sample_size: None,
            in_channels: 3,
            out_channels: 3,
            center_input_sample: false,
            time_embedding_type: "positional".into(),
            time_embedding_dim: None,
            freq_shift: 0.0,
            flip_sin_to_cos: true,
            down_block_types: types(["DownBlock2D", attn[0], attn[0], attn[0]]),
            mid_block_type: Nullable::Value("UNetMidBlock2D".into()),
            up_block_types: types([attn[1], attn[1], attn[1], "UpBlock2D"]),
            block_out_channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            downsample_padding: 1,
            downsample_type: "conv".into(),
            upsample_type: "conv".into(),
            dropout: 0.0,
            act_fn: "silu".into(),
            attention_head_dim: HeadDim::Absent,
            norm_num_groups: Nullable::Value(32),
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            resnet_time_scale_shift: "default".into(),
            add_attention: true,
            class_embed_type: None,
            num_class_embeds: None,
            num_train_timesteps: None,
            extra: Map::new(),
        }
    }
}

impl UNetConfig {
    /// Reads the content of a `config.json`. Keys that start with `_` are kept
    /// in [`extra`](Self::extra); any other unknown key is an error.
    pub fn from_json(json: &Value) -> Result<Self> {
        let Value::Object(map) = json else {
            return Err(Error::config("model", "expected an object of keys and values"));
        };
        if let Some(class) = map.get("_class_name").and_then(Value::as_str)
            && class != CLASS_NAME
        {
            let problem = format!("`{class}` is not a network this reads; expected {CLASS_NAME}");
            return Err(Error::config("model._class_name", problem));
        }
        let (extra, fields): (Map<_, _>, Map<_, _>) = map
            .clone()
            .into_iter()
            .partition(|(key, _)| key.starts_with('_') || EMA_KEYS.contains(&key.as_str()));
        let mut config: UNetConfig = serde_path_to_error::deserialize(Value::Object(fields))
            .map_err(|e| {
                let key = match e.path().to_string() {
                    path if path == "." => "model".to_string(),
                    path => format!("model.{path}"),
                };
                Error::config(key, e.inner().to_string())
            })?;
        config.extra = extra;
        Ok(config)
    }

    /// The content of a `config.json` that diffusers loads.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("_class_name".into(), CLASS_NAME.into());
        map.insert("_diffusers_version".into(), DIFFUSERS_VERSION.into());
        map.extend(self.extra.clone());
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else {
            unreachable!("a struct of plain values")
        };
        let null = Value::from(NULL);
        map.extend(fields.into_iter().map(|(k, v)| (k, if v == null { Value::Null } else { v })));
        Value::Object(map)
    }

    /// Channels of the time embedding that every layer reads.
    pub fn time_embedding_channels(&self) -> usize {
        match self.time_embedding_dim {
            Some(dim) if dim > 0 => dim,
            _ => 4 * self.block_out_channels.first().copied().unwrap_or(0),
        }
    }

    /// Form of the time input: a value, or a row of the learned table.
    pub fn time_input(&self) -> Conditioning {
        match self.time_embedding_type.as_str() {
            "learned" => Conditioning::Row(self.num_train_timesteps.unwrap_or(0)),
            _ => Conditioning::Value,
        }
    }

    /// Form of the class input. A table takes a row; `timestep` takes what the
    /// time takes (the same projection, then an embedding of its own);
    /// `identity` takes a vector that is added to the time embedding.
    pub fn class_input(&self) -> Conditioning {
        match (self.class_embed_type.as_deref(), self.num_class_embeds) {
            (None, None) => Conditioning::Absent,
            (None, Some(rows)) => Conditioning::Row(rows),
            (Some("timestep"), _) => self.time_input(),
            (Some(_), _) => Conditioning::Vector(self.time_embedding_channels()),
        }
    }

    /// Factor between the sides of x and those of the coarsest level; x's sides
    /// are multiples of it.
    pub fn size_multiple(&self) -> usize {
        1 << (self.block_out_channels.len().max(1) - 1).min(31)
    }
}
