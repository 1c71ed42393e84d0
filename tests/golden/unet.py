"""Writes unet-*.safetensors beside this file: predictions, losses and gradients
of small UNet2DModels, computed by diffusers and PyTorch in f64.

    python unet.py            (made with torch 2.15 and diffusers 0.42.1)

Weights and inputs are not stored. They come from `values` below, which
tests/model repeats: for element e of the tensor named N,

    z = fnv1a64(N) + (e + 1) * 0x9E3779B97F4A7C15  (mod 2^64), then splitmix64's mix
    u = (z >> 40) / 2^23 - 1                       uniform in [-1, 1), exact in f32

and u is scaled as `weight` says. Tensors are in PyTorch's order of elements.
Gradients of more than LARGE elements are stored as every STRIDE-th element.
"""

import json
import pathlib

import numpy as np
import torch
from diffusers import UNet2DModel
from safetensors.numpy import save_file

LARGE, STRIDE = 600, 7
HERE = pathlib.Path(__file__).parent


def values(name, shape):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        e = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
        z = np.uint64(h) + e * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u = (z >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    return u.reshape(shape)


def weight(name, shape):
    u = values(name, shape)
    if name == "time_proj.weight" and len(shape) == 1:
        return u * np.float32(4)
    if name in ("time_proj.weight", "class_embedding.weight"):
        return u
    if len(shape) > 1:
        return u * np.float32(np.sqrt(3 / np.prod(shape[1:])))
    if name.endswith(".weight"):
        return u * np.float32(0.25) + np.float32(1)
    return u * np.float32(0.25)


DOWN, ATTN_DOWN = "DownBlock2D", "AttnDownBlock2D"
UP, ATTN_UP = "UpBlock2D", "AttnUpBlock2D"
SMALL = dict(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)


def two(down, up):
    return dict(down_block_types=down, up_block_types=up)


# name: (configuration, t, class)
CASES = {
    "ddpm": (
        dict(
            **SMALL,
            **two((DOWN, ATTN_DOWN), (ATTN_UP, UP)),
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            attention_head_dim=None,
            act_fn="silu",
        ),
        [0, 731],
        None,
    ),
    "heads": (
        dict(**{**SMALL, "layers_per_block": 2}, **two((ATTN_DOWN, DOWN), (ATTN_UP, ATTN_UP))),
        [17, 999],
        None,
    ),
    "scale-shift-class": (
        dict(
            **SMALL,
            **two((DOWN, "UNetResAttnDownBlock2D"), (ATTN_UP, UP)),
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=5,
            attention_head_dim=4,
        ),
        [3, 500],
        [4, 1],
    ),
    "resnet-resampling": (
        dict(
            **{**SMALL, "block_out_channels": (8, 8, 16)},
            **two(
                (ATTN_DOWN, "ResnetDownsampleBlock2D", DOWN),
                ("ResnetUpsampleBlock2D", ATTN_UP, UP),
            ),
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            attn_norm_num_groups=2,
            mid_block_scale_factor=1.41421356,
        ),
        [42, 250],
        None,
    ),
    "ncsnpp": (
        dict(
            **{**SMALL, "norm_num_groups": None, "block_out_channels": (8, 16, 16)},
            **two(("SkipDownBlock2D",) * 3, ("SkipUpBlock2D",) * 3),
            time_embedding_type="fourier",
            mid_block_scale_factor=1.41421356,
            attention_head_dim=None,
            norm_eps=1e-6,
            center_input_sample=True,
        ),
        [0.02, 11.5],
        None,
    ),
    "ncsnpp-attention": (
        dict(
            **{**SMALL, "norm_num_groups": None, "block_out_channels": (32, 32)},
            **two(
                ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
                ("AttnSkipUpBlock2D", "AttnSkipUpBlock2D"),
            ),
            time_embedding_type="fourier",
            mid_block_type=None,
            attention_head_dim=16,
        ),
        [0.3, 2.0],
        None,
    ),
    "learned-time": (
        dict(
            **SMALL,
            **two((DOWN, DOWN), (UP, ATTN_UP)),
            time_embedding_type="learned",
            num_train_timesteps=12,
            class_embed_type="timestep",
            mid_block_type=None,
            act_fn="gelu",
        ),
        [11, 0],
        [5, 2],
    ),
    "mish-not-square": (
        dict(
            **{**SMALL, "sample_size": (8, 4), "block_out_channels": (10, 20), "norm_num_groups": 5},
            **two((DOWN, ATTN_DOWN), (ATTN_UP, UP)),
            class_embed_type="timestep",
            time_embedding_dim=12,
            act_fn="mish",
            freq_shift=0.5,
            downsample_padding=0,
        ),
        [999, 1],
        [0.25, 30.0],
    ),
    "identity-class": (
        dict(
            **{**SMALL, "in_channels": 2, "out_channels": 4},
            **two((DOWN, DOWN), (UP, UP)),
            class_embed_type="identity",
            act_fn="relu",
            add_attention=False,
            dropout=0.3,
        ),
        [100, 900],
        "vector",
    ),
    "one-level": (
        dict(
            **{**SMALL, "sample_size": (7, 5), "block_out_channels": (12,)},
            **dict(in_channels=1, out_channels=1),
            **two((ATTN_DOWN,), (ATTN_UP,)),
            attention_head_dim=8,
        ),
        [5, 6],
        None,
    ),
    "k": (
        dict(
            **{**SMALL, "block_out_channels": (32, 32), "layers_per_block": 2},
            **two(("KDownBlock2D", "KDownBlock2D"), ("KUpBlock2D", "KUpBlock2D")),
            mid_block_type=None,
            act_fn="gelu",
        ),
        [8, 800],
        None,
    ),
    "k-attention": (
        dict(
            **{**SMALL, "block_out_channels": (32, 32)},
            **two(
                ("KDownBlock2D", "KCrossAttnDownBlock2D"), ("KCrossAttnUpBlock2D", "KUpBlock2D")
            ),
            mid_block_type=None,
            time_embedding_dim=32,
            attention_head_dim=16,
        ),
        [9, 90],
        None,
    ),
}


def make(name, config, t, label):
    model = UNet2DModel(**config).double().eval()
    for key, p in model.named_parameters():
        p.data = torch.from_numpy(weight(key, tuple(p.shape))).double()
    if config.get("class_embed_type") == "timestep":
        # diffusers projects a class to f32 whatever the network computes in.
        model.class_embedding.register_forward_pre_hook(lambda _, args: (args[0].double(),))
    size = config["sample_size"]
    h, w = size if isinstance(size, tuple) else (size, size)
    n, c = len(t), model.config.in_channels
    x = torch.from_numpy(values("x", (n, c, h, w))).double().requires_grad_()
    target = torch.from_numpy(values("target", (n, model.config.out_channels, h, w))).double()
    learned = model.config.time_embedding_type == "learned"
    times = torch.tensor(t) if learned else torch.tensor(t, dtype=torch.float32).double()
    if label == "vector":
        width = model.time_embedding.linear_2.out_features
        label = torch.from_numpy(values("class", (n, width))).double()
    elif label is not None:
        label = torch.tensor(label)
        label = label.double() if label.is_floating_point() else label
    prediction = model(x, times, class_labels=label).sample
    loss = torch.nn.functional.mse_loss(prediction, target)
    loss.backward()
    out = {"prediction": prediction, "loss": loss.reshape(1), "d_x": x.grad}
    out["t"] = torch.tensor(t).float()
    if label is not None and label.ndim == 1:
        out["class"] = label.float()
    for key, p in model.named_parameters():
        if p.requires_grad:
            g = torch.zeros_like(p) if p.grad is None else p.grad
            g = g if g.numel() <= LARGE else g.flatten()[::STRIDE]
            out[f"d_{key}"] = g
    arrays = {k: np.ascontiguousarray(v.detach().float().numpy()) for k, v in out.items()}
    path = HERE / f"unet-{name}.safetensors"
    save_file(arrays, path, metadata={"config": json.dumps(config)})
    path.chmod(0o644)
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, loss {loss.item():.6f}")


def keys():
    """Names and shapes of ddpm-cifar10-32's tensors."""
    config = dict(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=(DOWN, ATTN_DOWN, DOWN, DOWN),
        up_block_types=(UP, UP, ATTN_UP, UP),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
    )
    shapes = {k: list(v.shape) for k, v in UNet2DModel(**config).state_dict().items()}
    lines = [f'  "{k}": {v}' for k, v in shapes.items()]
    text = '{\n"config": ' + json.dumps(config) + ',\n"shapes": {\n' + ",\n".join(lines) + "\n}}\n"
    (HERE / "unet-ddpm-cifar10.json").write_text(text)


if __name__ == "__main__":
    for name, case in CASES.items():
        make(name, *case)
    keys()
