"""Writes scores.json beside this file: scores of two small sets of vectors by
numpy, scipy and scikit-learn.

    python scores.py          (made with numpy 2, scipy 1 and scikit-learn 1)

The sets come from unet.py's formula: rows of uniforms times a fixed matrix, so
that coordinates are correlated.
"""

import json
import pathlib

import numpy as np
import scipy.linalg
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from unet import values

HERE = pathlib.Path(__file__).parent


def rows(name, n, dim):
    u = values(name, (n, dim)).astype(np.float32)
    mix = values(name + ".mix", (dim, dim)).astype(np.float32)
    return (u @ mix).astype(np.float32), u, mix


def frechet(x, y):
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root))


def mmd2(x, y):
    n, m = len(x), len(y)
    k = lambda a, b: polynomial_kernel(a, b, degree=3, gamma=1 / a.shape[1], coef0=1)
    xx, yy = k(x, x), k(y, y)
    same = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(same - 2 * k(x, y).mean())


def radius(x, k):
    return NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, k]


def prdc(samples, data, k):
    d = np.linalg.norm(samples[:, None] - data[None], axis=2)
    of_data, of_samples = radius(data, k), radius(samples, k)
    inside = d <= of_data[None]
    return {
        "precision": float(inside.any(1).mean()),
        "recall": float((d <= of_samples[:, None]).any(0).mean()),
        "density": float(inside.sum() / (k * len(samples))),
        "coverage": float((d.min(0) <= of_data).mean()),
    }


if __name__ == "__main__":
    out = []
    for n, m, dim in [(90, 70, 5), (40, 50, 23)]:
        x, y = (rows(name, count, dim)[0] for name, count in (("samples", n), ("data", m)))
        a, b = x.astype(np.float64), y.astype(np.float64)
        distances, indices = NearestNeighbors(n_neighbors=2).fit(b).kneighbors(a)
        out.append({
            "samples": x.flatten().tolist(),
            "data": y.flatten().tolist(),
            "dim": dim,
            "frechet": frechet(a, b),
            "mmd2": mmd2(a, b),
            "neighbours": {str(k): prdc(a, b, k) for k in (1, 3, 5)},
            "nearest": indices[:, 0].tolist(),
            "ratio": (distances[:, 0] / distances[:, 1]).tolist(),
        })
    path = HERE / "scores.json"
    path.write_text(json.dumps(out) + "\n")
    path.chmod(0o644)
    for case in out:
        print(case["frechet"], case["mmd2"], case["neighbours"])
