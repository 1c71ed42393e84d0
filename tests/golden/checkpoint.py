"""Writes tests/golden/checkpoint/: one tiny UNet2DModel saved by diffusers and
PyTorch in every form that langevin reads.

    python tests/golden/checkpoint.py        (torch 2.15, diffusers 0.42.1)

The weights are multiples of 2^-6 below 1, which f16 and bf16 hold exactly, so
every form holds the same numbers. `reference.safetensors` is f32; the tests
compare the others with it bit for bit.
"""

import json
import os
import shutil

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from safetensors.torch import save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoint")
LEGACY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def legacy_name(name):
    for current, old in LEGACY.items():
        name = name.replace(f".{current}.", f".{old}.")
    return name


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    os.makedirs(HERE)
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=2,
        attention_head_dim=4,
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(-63, 64, p.shape) / 64)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    at = lambda *parts: os.path.join(HERE, *parts)

    save_file(state, at("reference.safetensors"), metadata={"format": "pt"})
    with open(at("shapes.json"), "w") as f:
        json.dump({k: list(v.shape) for k, v in sorted(state.items())}, f, indent=0)

    # A flat directory: half precision under diffusers' variant name, and a
    # scheduler whose configuration holds -Infinity.
    model.half().save_pretrained(at("flat_fp16"), variant="fp16")
    DPMSolverMultistepScheduler().save_pretrained(at("flat_fp16"))
    model.float()

    os.makedirs(at("bf16"))
    save_file({k: v.bfloat16() for k, v in state.items()}, at("bf16", "model.safetensors"))

    model.half().save_pretrained(at("sharded"), max_shard_size="8KB")
    model.float()

    # A pipeline whose weights are an old .bin: legacy attention names, the
    # projections as 1x1 convolutions, parameters instead of tensors, one tensor
    # that is not contiguous and several that share a storage.
    pipeline = at("pipeline_bin")
    DDPMPipeline(model, DDIMScheduler(num_train_timesteps=50)).save_pretrained(pipeline)
    os.remove(os.path.join(pipeline, "unet", "diffusion_pytorch_model.safetensors"))
    old = {}
    for name, value in state.items():
        value = value.half()
        if ".attentions." in name and value.ndim == 2:
            value = value[:, :, None, None]
        old[legacy_name(name)] = value
    key = "down_blocks.0.resnets.0.conv1.weight"
    old[key] = old[key].transpose(0, 1).contiguous().transpose(0, 1)
    assert not old[key].is_contiguous()
    both = torch.cat([old["conv_in.bias"], old["conv_norm_out.bias"]])
    old["conv_in.bias"], old["conv_norm_out.bias"] = both[:4], both[4:]
    old["conv_out.bias"] = torch.nn.Parameter(old["conv_out.bias"])
    torch.save(old, os.path.join(pipeline, "unet", "diffusion_pytorch_model.bin"))

    # A pickle with an object in it that is no tensor.
    torch.save({"conv_in.bias": state["conv_in.bias"], "scheduler": DDPMScheduler}, at("object.bin"))
    # A whole training checkpoint instead of a state dictionary.
    torch.save({"model": {"conv_in.bias": state["conv_in.bias"]}, "step": 3}, at("nested.bin"))
    # Integers, doubles, and the form before PyTorch 1.6.
    torch.save({"conv_in.bias": torch.arange(4)}, at("integers.bin"))
    torch.save({"conv_in.bias": state["conv_in.bias"].double()}, at("double.bin"))
    torch.save({"conv_in.bias": state["conv_in.bias"]}, at("old_format.bin"), _use_new_zipfile_serialization=False)

    total = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(HERE) for f in fs)
    print(f"{len(state)} tensors, {sum(v.numel() for v in state.values())} parameters, {total} bytes")


if __name__ == "__main__":
    main()
