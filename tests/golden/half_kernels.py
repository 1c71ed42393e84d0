"""How far PyTorch's bf16 attention and norms on the CPU are from f64, on the operands of
tests/ops/attention_half.rs and norm_half.rs: the largest error of an element as a share of
the largest element, the worst over the shapes. The constants PYTORCH there are its output.

    OMP_NUM_THREADS=1 python tests/golden/half_kernels.py
"""

import numpy as np
import torch
import torch.nn.functional as F

SHAPES = [
    [1, 1, 1, 1, 8], [2, 16, 16, 4, 8], [2, 5, 70, 2, 16], [1, 65, 130, 1, 32], [2, 67, 65, 2, 64],
    [1, 70, 33, 1, 128], [1, 35, 50, 1, 256], [2, 20, 70, 3, 40], [1, 17, 66, 2, 19],
    [1, 9, 35, 1, 100], [1, 66, 9, 1, 200],
]


def values(seed, shape):
    """tests/ops/common.rs, `values`."""
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        i = np.uint64(seed) * np.uint64(0x2545F4914F6CDD1D) + np.arange(n, dtype=np.uint64)
        z = (i + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    v = (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    return torch.from_numpy(v.reshape(shape))


def error(found, expected):
    largest = expected.abs().max()
    return ((found.double() - expected).abs().max() / largest).item() if largest > 0 else 0.0


def attention(n, s_q, s_kv, heads, dim):
    scale = 1 / dim**0.5
    spread = [3, 3, 1]
    tokens = [s_q, s_kv, s_kv]
    operands = [
        (values(i + 1, [n, tokens[i], heads, dim]) * spread[i]).bfloat16() for i in range(3)
    ]
    d_o = values(99, [n, s_q, heads, dim]).bfloat16()

    def run(dtype):
        q, k, v = (t.to(dtype).detach().clone().requires_grad_() for t in operands)
        a, b, c = (t.transpose(1, 2) for t in (q, k, v))
        o = F.scaled_dot_product_attention(a, b, c, scale=scale).transpose(1, 2)
        o.backward(d_o.to(dtype))
        return [o.detach(), q.grad, k.grad, v.grad]

    found, expected = run(torch.bfloat16), run(torch.float64)
    errors = [error(f, e) for f, e in zip(found, expected)]
    # One key: the gradients of scores are nothing but rounding.
    return [e if i in (0, 3) or s_kv > 1 else 0.0 for i, e in enumerate(errors)]


# n, positions, channels, groups; no groups: a layer norm.
NORMS = [
    [1, 4, 8, 2], [2, 7, 6, 3], [3, 33, 15, 5], [2, 65, 48, 4], [2, 5, 40, 5], [1, 20, 96, 8],
    [1, 40, 64, 16], [1, 3, 520, 1], [1, 1, 8, 0], [2, 35, 72, 0], [1, 3, 1152, 0], [1, 70, 256, 0],
]


def norm(n, spatial, c, groups, activate):
    x = (2 * values(1, [n, spatial, c]) + 0.5).bfloat16()
    gamma, beta = 1 + 0.5 * values(2, [c]), values(3, [c])
    scale_shift, d_y = values(4, [n, 2 * c]).bfloat16(), values(99, [n, spatial, c]).bfloat16()

    def run(dtype):
        weights = torch.float64 if dtype == torch.float64 else torch.float32
        x_, s = (t.to(dtype).detach().clone().requires_grad_() for t in (x, scale_shift))
        g, b = (t.to(weights).detach().clone().requires_grad_() for t in (gamma, beta))
        if groups:
            y = F.group_norm(x_.transpose(1, 2), groups, g, b, 1e-5).transpose(1, 2)
        else:
            y = F.layer_norm(x_, (c,), g, b, 1e-5)
        y = y * (1 + s[:, None, :c]) + s[:, None, c:]
        y = F.silu(y) if activate else y
        y.backward(d_y.to(dtype))
        return [y.detach(), x_.grad, g.grad, b.grad, s.grad]

    return [error(f, e) for f, e in zip(run(torch.bfloat16), run(torch.float64))]


def main():
    torch.set_num_threads(1)
    worst = np.max([attention(*s) for s in SHAPES], axis=0)
    norms = np.max([norm(*s, activate) for s in NORMS for activate in (False, True)], axis=0)
    print("norms y, d_x, d_gamma, d_beta, d_scale_shift:", " ".join(f"{e:.2e}" for e in norms))
    print("attention o, d_q, d_k, d_v:", " ".join(f"{e:.2e}" for e in worst))


if __name__ == "__main__":
    main()
