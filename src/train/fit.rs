//! Whether network, data and objective fit each other.

use crate::config::Config;
use crate::data::Dataset;
use crate::diffusion::denoiser::{Denoiser, Precondition};
use crate::diffusion::loss::Objective;
use crate::error::{Error, Result};
use crate::model::{Conditioning, Network};

/// Refuses a network that does not fit the data, with both sides named.
pub(super) fn check_fit(
    config: &Config,
    network: &Network,
    dataset: &Dataset,
    objective: &Objective,
) -> Result<()> {
    let [_, h, w, c] = dataset.shape();
    if network.in_channels() != c {
        let channels = network.in_channels();
        return Err(Error::config(
            "model.in_channels",
            format!(
                "is {channels} and the data has {c} channels: --set model.in_channels={c}, or --set data.channels={channels}"
            ),
        ));
    }
    let (needed, why) = match objective.learns_variance() {
        true => (2 * c, ", and the variance is learned"),
        false => (c, ""),
    };
    if network.out_channels() != needed {
        return Err(Error::config(
            "model.out_channels",
            format!(
                "is {} and the data has {c} channels{why}: --set model.out_channels={needed}",
                network.out_channels()
            ),
        ));
    }
    check_labels(network, objective.denoiser())?;
    if let Some([mh, mw, _]) = network.sample_shape()
        && [mh, mw] != [h, w]
    {
        return Err(Error::config(
            "model.sample_size",
            format!(
                "is {mh}x{mw} and the data is {h}x{w}: --set data.size='[{mh}, {mw}]', or set model.sample_size"
            ),
        ));
    }
    match network.class_input() {
        Conditioning::Absent => {}
        Conditioning::Row(rows) => {
            if dataset.labels().is_none() {
                return Err(Error::config(
                    "model.num_class_embeds",
                    "the network has classes and the data has none",
                ));
            }
            let needed = dataset.classes().len() + usize::from(config.train.class_dropout > 0.0);
            if rows < needed {
                return Err(Error::config(
                    "model.num_class_embeds",
                    format!(
                        "is {rows}; the data has {} classes, and class dropout needs one row more: {needed}",
                        dataset.classes().len()
                    ),
                ));
            }
        }
        _ => {
            return Err(Error::config(
                "model.class_embed_type",
                "training takes classes from a table only: leave class_embed_type out and set num_class_embeds",
            ));
        }
    }
    Ok(())
}

/// Refuses a network whose time embedding cannot take the process's labels.
fn check_labels(network: &Network, denoiser: &Denoiser) -> Result<()> {
    let first = denoiser.target(denoiser.process.earliest())?.label;
    let takes_logarithm =
        matches!(network, Network::UNet(config) if config.time_embedding_type == "fourier");
    let problem = match network.time_input() {
        Conditioning::Row(_) if denoiser.process.steps().is_none() => {
            "`learned` looks the time up in a table, and the process is continuous"
        }
        Conditioning::Row(_) if denoiser.precondition != Precondition::None => {
            "`learned` looks the time up in a table, and EDM's c_noise is no row of it"
        }
        _ if takes_logarithm && first < 0.0 => {
            "`fourier` takes the logarithm of what the network is told, which is negative here"
        }
        _ => return Ok(()),
    };
    Err(Error::config("model.time_embedding_type", format!("{problem}: use positional")))
}
