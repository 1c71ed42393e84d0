"""Makes schedulers.json and schedulers.safetensors: tables and trajectories of
diffusers' schedulers (0.42.1, torch 2.15) for a fixed toy network and noise.

    python tests/golden/schedulers.py

Each case runs twice. In `f32` the scheduler is diffusers' own, as it comes. In
`f64` the same code runs with its table and tensors in double precision, so that
what is compared is the formulas and not the rounding of a 1 - alphas_cumprod in
single precision.
"""

import json
import pathlib

import diffusers
import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent
SHAPE = (2, 3, 2, 3)
MOST_STEPS = 12

TABLES = [
    dict(num_train_timesteps=500),
    dict(num_train_timesteps=1000),
    dict(num_train_timesteps=10),
    dict(num_train_timesteps=200, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    dict(num_train_timesteps=300, beta_schedule="squaredcos_cap_v2"),
    dict(num_train_timesteps=150, beta_schedule="sigmoid"),
    dict(num_train_timesteps=100, rescale_betas_zero_snr=True),
    dict(num_train_timesteps=4, trained_betas=[0.1, 0.2, 0.3, 0.4]),
]

# class, number of steps, configuration, arguments of step
CASES = [
    ("DDPMScheduler", 10, dict(num_train_timesteps=10), {}),
    ("DDPMScheduler", 12, dict(), {}),
    ("DDPMScheduler", 12, dict(clip_sample=False), {}),
    ("DDPMScheduler", 10, dict(variance_type="fixed_large"), {}),
    ("DDPMScheduler", 10, dict(variance_type="fixed_small_log", clip_sample_range=0.5), {}),
    ("DDPMScheduler", 10, dict(timestep_spacing="trailing"), {}),
    ("DDPMScheduler", 7, dict(timestep_spacing="trailing", num_train_timesteps=30), {}),
    ("DDPMScheduler", 9, dict(timestep_spacing="linspace", variance_type="fixed_large"), {}),
    ("DDPMScheduler", 10, dict(steps_offset=1), {}),
    ("DDPMScheduler", 10, dict(prediction_type="v_prediction"), {}),
    ("DDPMScheduler", 10, dict(prediction_type="sample"), {}),
    ("DDPMScheduler", 10, dict(thresholding=True, sample_max_value=4.0, dynamic_thresholding_ratio=0.9), {}),
    (
        "DDPMScheduler",
        10,
        dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        {},
    ),
    ("DDPMScheduler", 10, dict(beta_schedule="squaredcos_cap_v2"), {}),
    ("DDPMScheduler", 10, dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012), {}),
    ("DDPMScheduler", 10, dict(beta_schedule="sigmoid"), {}),
    ("DDIMScheduler", 12, dict(), dict(eta=0.0)),
    ("DDIMScheduler", 12, dict(), dict(eta=0.5)),
    ("DDIMScheduler", 12, dict(), dict(eta=1.0)),
    ("DDIMScheduler", 10, dict(clip_sample=False), dict(eta=0.0)),
    ("DDIMScheduler", 10, dict(clip_sample_range=0.5), dict(eta=0.5, use_clipped_model_output=True)),
    ("DDIMScheduler", 10, dict(timestep_spacing="trailing"), dict(eta=0.5)),
    ("DDIMScheduler", 7, dict(timestep_spacing="trailing", num_train_timesteps=30), dict(eta=0.5)),
    ("DDIMScheduler", 9, dict(timestep_spacing="linspace"), dict(eta=0.5)),
    ("DDIMScheduler", 10, dict(set_alpha_to_one=False, steps_offset=1), dict(eta=1.0)),
    ("DDIMScheduler", 10, dict(prediction_type="v_prediction"), dict(eta=0.5)),
    ("DDIMScheduler", 10, dict(prediction_type="sample"), dict(eta=0.5)),
    (
        "DDIMScheduler",
        10,
        dict(thresholding=True, sample_max_value=4.0, dynamic_thresholding_ratio=0.9),
        dict(eta=0.5),
    ),
    (
        "DDIMScheduler",
        10,
        dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        dict(eta=0.5),
    ),
]


def network(x, t):
    """A fixed function in place of a network; written again in the Rust tests."""
    return x * (0.4 + 0.0005 * t) + 0.5 * torch.sin(3.0 * x) - 0.1


def scheduler_of(name, config, dtype):
    scheduler = getattr(diffusers, name)(**config)
    if dtype == torch.float64:
        table = doubles(config)
        scheduler.betas = table
        scheduler.alphas = 1.0 - table
        scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)
        scheduler.one = torch.tensor(1.0, dtype=dtype)
        if hasattr(scheduler, "final_alpha_cumprod"):
            to_one = scheduler.config.set_alpha_to_one
            scheduler.final_alpha_cumprod = scheduler.one if to_one else scheduler.alphas_cumprod[0]
    return scheduler


def doubles(config):
    """The betas of a configuration with diffusers' constructor in double precision."""
    linspace, tensor = torch.linspace, torch.tensor
    module = diffusers.schedulers.scheduling_ddpm.torch

    class Double:
        float32 = torch.float64

        def __getattr__(self, key):
            return getattr(torch, key)

        @staticmethod
        def linspace(*args, **kwargs):
            return linspace(*args, **{**kwargs, "dtype": torch.float64})

        @staticmethod
        def tensor(values, **kwargs):
            return tensor(values, dtype=torch.float64)

    diffusers.schedulers.scheduling_ddpm.torch = Double()
    try:
        known = diffusers.DDPMScheduler.__init__.__wrapped__.__code__.co_varnames
        return diffusers.DDPMScheduler(**{k: v for k, v in config.items() if k in known}).betas
    finally:
        diffusers.schedulers.scheduling_ddpm.torch = module


def trajectory(name, steps, config, arguments, noise, dtype):
    scheduler = scheduler_of(name, config, dtype)
    scheduler.set_timesteps(steps)
    module = __import__(scheduler.__module__, fromlist=["randn_tensor"])
    x = noise[0].to(dtype)
    states = []
    for i, t in enumerate(scheduler.timesteps):
        module.randn_tensor = lambda *a, **k: noise[1 + i].to(dtype)
        x = scheduler.step(network(x, float(t)), t, x, **arguments).prev_sample
        states.append(x)
    return scheduler.timesteps.tolist(), torch.stack(states)


def main():
    torch.manual_seed(1)
    noise = torch.randn(1 + MOST_STEPS, *SHAPE)
    tensors = {"noise": noise}
    tables = []
    for i, config in enumerate(TABLES):
        scheduler = scheduler_of("DDPMScheduler", config, torch.float64)
        tensors[f"table.{i}.betas"] = scheduler.betas
        tensors[f"table.{i}.alphas_cumprod"] = scheduler.alphas_cumprod
        single = scheduler_of("DDPMScheduler", config, torch.float32)
        assert (single.alphas_cumprod - scheduler.alphas_cumprod).abs().max() < 2e-6
        tables.append(config)
    cases = []
    for i, (name, steps, config, arguments) in enumerate(CASES):
        timesteps, exact = trajectory(name, steps, config, arguments, noise, torch.float64)
        _, single = trajectory(name, steps, config, arguments, noise, torch.float32)
        assert exact.dtype == torch.float64 and exact.isfinite().all()
        tensors[f"case.{i}.f64"] = exact.to(torch.float32)
        tensors[f"case.{i}.f32"] = single
        written = json.loads(getattr(diffusers, name)(**config).to_json_string())
        cases.append(dict(config=written, steps=steps, timesteps=timesteps, arguments=arguments))
        apart = (exact - single).abs().max() / exact.abs().max()
        print(f"{i:3} {name} {steps} {config} {arguments}: f32 and f64 differ by {apart:.1e}")
    text = json.dumps(dict(tables=tables, cases=cases), indent=1)
    (FOLDER / "schedulers.json").write_text(text + "\n")
    save_file(tensors, FOLDER / "schedulers.safetensors")


main()
