"""The other side of `cargo bench --bench peers`: runs what it is told in PyTorch.

Reads one JSON object a line and answers with one. `{"case": {...}}` prepares a
case, `{"run": k}` runs it k times and returns the seconds of each run.
"""

import json
import os
import sys
import time

import torch
import torch.nn.functional as F


def conv2d(case):
    n, h, w, c_in, c_out = (case[k] for k in ("n", "h", "w", "c_in", "c_out"))
    kernel, stride, pad = case["kernel"], case["stride"], case["padding"]
    x = torch.randn(n, c_in, h, w)
    weight, bias = torch.randn(c_out, c_in, kernel, kernel), torch.randn(c_out)
    # (top, left, bottom, right); uneven padding as PyTorch users do it.
    uneven = pad[0] != pad[2] or pad[1] != pad[3]
    symmetric = [0, 0] if uneven else pad[:2]

    def prepare(layout):
        a, b = x.to(memory_format=layout), weight.to(memory_format=layout)
        if case["pass"] == "forward":
            if uneven:
                return lambda: F.conv2d(F.pad(a, (pad[1], pad[3], pad[0], pad[2])), b, bias, stride)
            return lambda: F.conv2d(a, b, bias, stride, symmetric)
        if uneven:
            a = F.pad(a, (pad[1], pad[3], pad[0], pad[2])).contiguous(memory_format=layout)
        y = F.conv2d(a, b, bias, stride, symmetric)
        d_y = torch.randn_like(y).to(memory_format=layout)
        mask = [True, False, False] if case["pass"] == "backward_data" else [False, True, True]

        def backward():
            torch.ops.aten.convolution_backward(
                d_y, a, b, [c_out], [stride, stride], symmetric, [1, 1], False, [0, 0], 1, mask
            )

        return backward

    candidates = {"nchw": prepare(torch.contiguous_format), "nhwc": prepare(torch.channels_last)}
    return fastest(candidates)


def linear(case):
    x, weight = torch.randn(case["rows"], case["c_in"]), torch.randn(case["c_out"], case["c_in"])
    bias, d_y = torch.randn(case["c_out"]), torch.randn(case["rows"], case["c_out"])
    passes = {
        "forward": lambda: F.linear(x, weight, bias),
        "backward_data": lambda: d_y @ weight,
        "backward_weight": lambda: (d_y.t() @ x, d_y.sum(0)),
    }
    return "eager", passes[case["pass"]]


def unet(case):
    from diffusers import UNet2DModel

    config = json.load(open(case["config"]))
    model = UNet2DModel.from_config(config)
    n, size = case["n"], config["sample_size"]
    x, t = torch.randn(n, 3, size, size), torch.randint(0, 1000, (n,))
    if case["pass"] == "forward":
        model.eval()

        def forward():
            with torch.no_grad():
                model(x, t)

        return "eager", forward
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    noise = torch.randn_like(x)

    def step():
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(model(x, t).sample, noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return "eager", step


def normals(case):
    x = torch.empty(case["len"])
    return "eager", lambda: x.normal_()


def noising(case):
    x0 = torch.randn(case["n"], case["len"])
    signal, std = torch.rand(case["n"], 1), torch.rand(case["n"], 1)
    return "eager", lambda: signal * x0 + std * torch.randn_like(x0)


def loss(case):
    prediction, noise = torch.randn(2, case["n"], case["len"])
    return "eager", lambda: F.mse_loss(prediction, noise)


def loss_backward(case):
    prediction, noise = torch.randn(2, case["n"], case["len"])
    one = torch.tensor(1.0)
    return "eager", lambda: torch.ops.aten.mse_loss_backward(one, prediction, noise, 1)


def dropout(case):
    x = torch.randn(case["n"], case["len"])
    return "eager", lambda: F.dropout(x, 0.1, training=True)


def global_norm(case):
    gradients = torch.randn(case["len"])
    return "eager", lambda: torch.linalg.vector_norm(gradients)


def adamw(case):
    p = torch.nn.Parameter(torch.randn(case["len"]))
    p.grad = torch.randn(case["len"])
    average = p.detach().clone()
    optimizer = torch.optim.AdamW([p], lr=1e-4, fused=True)

    def step():
        optimizer.step()
        if case["average"]:
            torch._foreach_lerp_([average], [p.detach()], 1e-4)

    return "fused", step


def fastest(candidates):
    """The candidate with the best of three runs; diffusion code uses either layout."""
    best = None
    for name, run in candidates.items():
        run()
        seconds = min(timed(run) for _ in range(3))
        if best is None or seconds < best[0]:
            best = (seconds, name, run)
    return best[1], best[2]


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main():
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # Stray prints of libraries must not reach the protocol.
    answers, sys.stdout = sys.stdout, sys.stderr
    run = None
    for line in sys.stdin:
        request = json.loads(line)
        if "case" in request:
            torch.manual_seed(0)
            variant, run = globals()[request["case"]["op"]](request["case"])
            with torch.no_grad() if request["case"]["op"] != "unet" else torch.enable_grad():
                run()
            answer = {"variant": variant}
        elif "run" in request:
            answer = {"seconds": [timed(run) for _ in range(request["run"])]}
        else:
            answer = {"version": torch.__version__, "threads": torch.get_num_threads()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
