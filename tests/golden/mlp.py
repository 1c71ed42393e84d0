"""Writes mlp-*.safetensors beside this file: predictions, losses and gradients of
langevin's perceptron for points, computed by PyTorch in f64.

    python mlp.py             (made with torch 2.15)

Weights and inputs come from unet.py's formula.
"""

import json
import math
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.nn.functional import mse_loss, silu
from unet import LARGE, STRIDE, values, weight

HERE = pathlib.Path(__file__).parent
SMALL = dict(_class_name="LangevinMlp", hidden=20, layers=2, time_embedding_dim=12)
CASES = {
    "positional": (dict(**SMALL, channels=2, time_scale=1.5), [0, 731, 12]),
    "fourier": (dict(**SMALL, channels=3, time_embedding_type="fourier"), [0.02, -1.5, 0.9]),
}


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.time, self.second = (nn.Linear(width, width) for _ in range(3))

    def forward(self, h, e):
        return h + self.second(silu(self.first(silu(h)) + self.time(e)))


class Mlp(nn.Module):
    def __init__(self, channels, hidden, layers, time_embedding_dim, **other):
        super().__init__()
        self.fourier = other.get("time_embedding_type") == "fourier"
        self.scale, self.features = other.get("time_scale", 1.0), time_embedding_dim
        if self.fourier:
            self.time_proj = nn.Module()
            self.time_proj.weight = nn.Parameter(
                torch.empty(time_embedding_dim // 2), requires_grad=False
            )
        self.time_embedding = nn.Module()
        self.time_embedding.linear_1 = nn.Linear(time_embedding_dim, hidden)
        self.time_embedding.linear_2 = nn.Linear(hidden, hidden)
        self.input = nn.Linear(channels, hidden)
        self.layers = nn.ModuleList(Layer(hidden) for _ in range(layers))
        self.output = nn.Linear(hidden, channels)

    def forward(self, x, t):
        half = self.features // 2
        if self.fourier:
            phase = 2 * math.pi * (self.scale * t)[:, None] * self.time_proj.weight
        else:
            rate = torch.exp(-math.log(10000) * torch.arange(half, dtype=t.dtype) / half)
            phase = (self.scale * t)[:, None] * rate
        e = torch.cat([phase.sin(), phase.cos()], dim=1)
        e = silu(self.time_embedding.linear_2(silu(self.time_embedding.linear_1(e))))
        h = self.input(x)
        for layer in self.layers:
            h = layer(h, e)
        return self.output(silu(h))


def make(name, config, t):
    fields = {k: v for k, v in config.items() if k != "_class_name"}
    model = Mlp(**fields).double()
    for key, p in model.named_parameters():
        p.data = torch.from_numpy(weight(key, tuple(p.shape))).double()
    n, c = len(t), config["channels"]
    x = torch.from_numpy(values("x", (n, c))).double().requires_grad_()
    target = torch.from_numpy(values("target", (n, c))).double()
    prediction = model(x, torch.tensor(t, dtype=torch.float32).double())
    loss = mse_loss(prediction, target)
    loss.backward()
    image = (n, c, 1, 1)
    out = {
        "prediction": prediction.reshape(image),
        "loss": loss.reshape(1),
        "d_x": x.grad.reshape(image),
        "t": torch.tensor(t).float(),
    }
    for key, p in model.named_parameters():
        if p.requires_grad:
            out[f"d_{key}"] = p.grad if p.numel() <= LARGE else p.grad.flatten()[::STRIDE]
    arrays = {k: np.ascontiguousarray(v.detach().float().numpy()) for k, v in out.items()}
    path = HERE / f"mlp-{name}.safetensors"
    save_file(arrays, path, metadata={"config": json.dumps(config)})
    path.chmod(0o644)
    print(f"{name}: loss {loss.item():.6f}")


if __name__ == "__main__":
    for name, case in CASES.items():
        make(name, *case)
