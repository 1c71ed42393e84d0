"""Writes precision.json beside this file: how far PyTorch's bf16 autocast is from f64 on
the networks of unet.py and mlp.py, whose files hold the f64 side.

    python precision.py       (made with torch 2.15 and diffusers 0.42.1, on a CPU)

With the Euclidean norm |.|, for each network:
    prediction  |y - y*| / |y*|
    gradients   |g - g*| / |g*|, g all stored gradients by weights in one vector
    worst       the largest |g_i - g_i*| / (|g_i*| + FLOOR |g*|) of one weight i
"""

import json
import pathlib

import numpy as np
import torch
from diffusers import UNet2DModel
from safetensors.numpy import load_file
from torch.nn.functional import mse_loss

import mlp
import unet

FLOOR = 0.01
HERE = pathlib.Path(__file__).parent


def network(config):
    if config.get("_class_name") == "LangevinMlp":
        model = mlp.Mlp(**{k: v for k, v in config.items() if k != "_class_name"})
    else:
        model = UNet2DModel(**config)
    model = model.float().eval()
    for key, p in model.named_parameters():
        p.data = torch.from_numpy(unet.weight(key, tuple(p.shape)))
    return model


def errors(path, config, t, label):
    expected = load_file(path)
    model = network(config)
    x = torch.from_numpy(unet.values("x", expected["d_x"].shape))
    target = torch.from_numpy(unet.values("target", expected["prediction"].shape))
    if isinstance(model, UNet2DModel):
        times = torch.tensor(t)
        if label == "vector":
            width = model.time_embedding.linear_2.out_features
            label = torch.from_numpy(unet.values("class", (len(t), width)))
        elif label is not None:
            label = torch.tensor(label)
        call = lambda: model(x, times, class_labels=label).sample
    else:
        x, target = x[:, :, 0, 0], target[:, :, 0, 0]
        call = lambda: model(x, torch.tensor(t, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = call()
    loss = mse_loss(prediction.float(), target)
    loss.backward()
    norm = lambda v: float(np.linalg.norm(v.astype(np.float64).ravel()))
    y = prediction.detach().float().numpy().reshape(expected["prediction"].shape)
    of, off = {}, {}
    for key, p in model.named_parameters():
        if not p.requires_grad:
            continue
        g = torch.zeros_like(p) if p.grad is None else p.grad
        g = g.detach().float().numpy()
        g = g if g.size <= unet.LARGE else g.ravel()[:: unet.STRIDE]
        e = expected[f"d_{key}"]
        of[key], off[key] = norm(e), norm(g - e.reshape(g.shape))
    total = np.hypot.reduce(list(of.values()))
    return {
        "prediction": norm(y - expected["prediction"]) / norm(expected["prediction"]),
        "gradients": float(np.hypot.reduce(list(off.values())) / total),
        "worst": float(max(off[k] / (of[k] + FLOOR * total) for k in of)),
    }


def main():
    found = {}
    for name, case in unet.CASES.items():
        found[name] = errors(HERE / f"unet-{name}.safetensors", *case)
    for name, (config, t) in mlp.CASES.items():
        found[f"mlp-{name}"] = errors(HERE / f"mlp-{name}.safetensors", config, t, None)
    for name, of in found.items():
        found[name] = {k: float(f"{v:.3g}") for k, v in of.items()}
        print(name, found[name])
    (HERE / "precision.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
