"""The bias of RePaint and DPS on correlated Gaussian pairs, simulated apart from langevin.

Prints slope and variance of the unknown pixel given the known one, for the settings of
tests/diffusion/edit.rs. Exact: slope 0.8, variance 0.36. Needs numpy; takes seconds.
"""
import numpy as np

RHO, PAIRS = 0.8, 16384
rng = np.random.default_rng(0)
AXES = [(1 + RHO, np.array([[0.5, 0.5], [0.5, 0.5]])), (1 - RHO, np.array([[0.5, -0.5], [-0.5, 0.5]]))]


def pair(t):
    """Signal and std of VP with beta from 0.1 to 20."""
    b = 0.1 * t + 0.5 * 19.9 * t * t
    return np.exp(-b / 2), np.sqrt(-np.expm1(-b))


def levels(steps):
    """From the data, level 0, to the noisiest."""
    return [(1.0, 0.0)] + [pair(t) for t in np.linspace(1, 1e-3, steps)][::-1]


def denoise(x, signal, std):
    """eps, x_0 and dx_0/dx of the exact network."""
    inverse = sum(p / (signal**2 * v + std**2) for v, p in AXES)
    eps = std * inverse @ x
    return eps, (x - std * eps) / signal, (np.eye(2) - std**2 * inverse) / signal


def step(x, x0, eps, now, then):
    """The ancestral step."""
    (a, s), (b, r) = now, then
    variance = (s * s - (a / b) ** 2 * r * r) * r * r / (s * s)
    return b * x0 + np.sqrt(max(r * r - variance, 0)) * eps + np.sqrt(variance) * rng.standard_normal(x.shape)


def report(name, x, y):
    print(f"{name}: slope {(x[1] * y).mean() / (y * y).mean():.3f},",
          f"variance {((x[1] - RHO * y) ** 2).mean():.3f}, residual {((x[0] - y) ** 2).mean():.1e}")


def repaint(steps, length, resamples):
    y, x = rng.standard_normal(PAIRS), rng.standard_normal((2, PAIRS))
    at = levels(steps)
    jumps = {n: resamples - 1 for n in range(1, steps - length + 1, length)}
    level = steps
    while level > 0:
        eps, x0, _ = denoise(x, *at[level])
        x = step(x, x0, eps, at[level], at[level - 1])
        level -= 1
        signal, std = at[level]
        x[0] = signal * y + std * rng.standard_normal(PAIRS)
        if jumps.get(level, 0):
            jumps[level] -= 1
            more, noise = at[level + length]
            a = more / signal
            x = a * x + np.sqrt(noise**2 - (a * std) ** 2) * rng.standard_normal(x.shape)
            level += length
    report(f"repaint, {resamples} resamples", x, y)


def dps(steps, scale, channels=64):
    y, x = rng.standard_normal(PAIRS), rng.standard_normal((2, PAIRS))
    at = levels(steps)
    for level in range(steps, 0, -1):
        eps, x0, jacobian = denoise(x, *at[level])
        r = (x0[0] - y).reshape(-1, channels)
        u = (r / np.linalg.norm(r, axis=1, keepdims=True)).ravel()
        x = step(x, x0, eps, at[level], at[level - 1]) - scale * np.outer(jacobian[0], u)
    report(f"dps, scale {scale}", x, y)


repaint(40, 5, 1)
repaint(40, 5, 12)
dps(200, 0.3)
dps(200, 3.0)
