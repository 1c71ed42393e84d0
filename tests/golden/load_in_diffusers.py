"""Checks that diffusers loads a checkpoint of langevin as it stands, and that
both compute the same prediction from it.

    CHECKPOINT=RUN/checkpoints/step-N
    python tests/golden/load_in_diffusers.py $CHECKPOINT --make-input x.safetensors
    langevin predict $CHECKPOINT --input x.safetensors --output ema.safetensors --weights ema
    langevin predict $CHECKPOINT --input x.safetensors --output raw.safetensors --weights raw
    python tests/golden/load_in_diffusers.py $CHECKPOINT --input x.safetensors \\
        --ema ema.safetensors --raw raw.safetensors

Without predictions it checks the loading alone. Checked are: the pipeline, its
classes and one drawn sample; for unet and unet_raw that no weight is missing or
left over, that diffusers knows every key of the configuration, and that every
tensor has the file's bits. A prediction may differ by 1e-5 of its largest
magnitude. The last line is `passed`; the exit status is 1 where a check fails.
"""

import argparse
import json
import os
import sys

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-5


def check(what, holds, detail=""):
    print(f"{'ok    ' if holds else 'FAILED'} {what} {detail}".rstrip())
    if not holds:
        sys.exit(1)


def load_network(checkpoint, folder):
    """The network, once its names, configuration and values are checked."""
    network, info = UNet2DModel.from_pretrained(
        checkpoint, subfolder=folder, output_loading_info=True, low_cpu_mem_usage=False
    )
    problems = {k: v for k, v in info.items() if v}
    check(f"{folder}: no weight missing or left over", not problems, problems or "")
    with open(os.path.join(checkpoint, folder, "config.json")) as f:
        config = json.load(f)
    unknown = [k for k in config if not k.startswith("_") and k not in network.config]
    check(f"{folder}: every key of the configuration is known", not unknown, unknown or "")
    changed = {
        k: (v, network.config[k])
        for k, v in config.items()
        if not k.startswith("_") and json.loads(json.dumps(network.config[k])) != v
    }
    check(f"{folder}: the configuration is kept", not changed, changed or "")
    stored = load_file(os.path.join(checkpoint, folder, "diffusion_pytorch_model.safetensors"))
    state = network.state_dict()
    same = stored.keys() == state.keys() and all(
        stored[k].dtype == torch.float32 and torch.equal(stored[k].view(torch.int32), state[k].view(torch.int32))
        for k in stored
    )
    check(f"{folder}: {len(stored)} tensors with the file's bits", same)
    return network.eval()


def make_input(network, path):
    generator = torch.Generator().manual_seed(7)
    config = network.config
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    n = 4
    tensors = {
        "x": torch.randn(n, config.in_channels, height, width, generator=generator),
        "t": torch.tensor([0, 1, 37, 99]),
    }
    if config.class_embed_type is None and config.num_class_embeds:
        tensors["class"] = torch.arange(n) % config.num_class_embeds
    save_file(tensors, path)
    print(f"wrote {path}: " + ", ".join(f"{k} {list(v.shape)}" for k, v in tensors.items()))


def compare(network, inputs, path, name):
    with torch.no_grad():
        expected = network(inputs["x"], inputs["t"], class_labels=inputs.get("class")).sample
    found = load_file(path)["prediction"]
    check(f"{name}: prediction has shape {list(expected.shape)}", found.shape == expected.shape, list(found.shape))
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    check(f"{name}: prediction within {TOLERANCE}", error <= TOLERANCE, f"relative error {error:.2e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--make-input", metavar="FILE")
    parser.add_argument("--input", metavar="FILE")
    parser.add_argument("--ema", metavar="FILE")
    parser.add_argument("--raw", metavar="FILE")
    arguments = parser.parse_args()
    checkpoint = arguments.checkpoint

    with open(os.path.join(checkpoint, "model_index.json")) as f:
        index = json.load(f)
    pipeline = DiffusionPipeline.from_pretrained(checkpoint)
    check("pipeline class", type(pipeline).__name__ == index["_class_name"], type(pipeline).__name__)
    check(
        "scheduler class",
        type(pipeline.scheduler).__name__ == index["scheduler"][1],
        type(pipeline.scheduler).__name__,
    )
    generator = torch.Generator().manual_seed(0)
    image = pipeline(batch_size=1, num_inference_steps=2, generator=generator, output_type="np").images
    check("the pipeline draws", bool(torch.isfinite(torch.from_numpy(image)).all()), list(image.shape))

    networks = {"ema": load_network(checkpoint, "unet")}
    if os.path.isdir(os.path.join(checkpoint, "unet_raw")):
        networks["raw"] = load_network(checkpoint, "unet_raw")
    if arguments.make_input:
        make_input(networks["ema"], arguments.make_input)
    if arguments.input:
        inputs = load_file(arguments.input)
        for name, path in [("ema", arguments.ema), ("raw", arguments.raw)]:
            if path:
                compare(networks[name], inputs, path, name)
    print("passed")


if __name__ == "__main__":
    main()
