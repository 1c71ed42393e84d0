"""Makes schedulers.json and schedulers.safetensors: tables and trajectories of
diffusers' schedulers (0.42.1, torch 2.15) for a fixed toy network and noise.

    python tests/golden/schedulers.py

Trajectories are of the schedulers as they come, in single precision. Tables are
of the same constructors in double precision, so that what is compared is the
formulas and not the rounding of 1 - alphas_cumprod.
"""

import json
import pathlib
import sys

import diffusers
import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent
SHAPE = (2, 3, 2, 3)
MOST_STEPS = 20

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

ZERO_SNR = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")
THRESHOLD = dict(thresholding=True, sample_max_value=4.0, dynamic_thresholding_ratio=0.9)

# The same, of the classes that come with options of their own.
for config in [
    dict(),
    dict(timestep_spacing="leading", steps_offset=1),
    dict(timestep_spacing="trailing"),
    dict(use_karras_sigmas=True),
    dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=20.0),
    dict(use_exponential_sigmas=True),
    dict(final_sigmas_type="sigma_min"),
    dict(interpolation_type="log_linear"),
    dict(prediction_type="v_prediction"),
    dict(prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True),
    dict(prediction_type="sample"),
    dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    ZERO_SNR,
]:
    CASES.append(("EulerDiscreteScheduler", 7, config, {}))
for config in [
    dict(),
    dict(timestep_spacing="leading"),
    dict(timestep_spacing="trailing", beta_schedule="scaled_linear"),
    dict(use_karras_sigmas=True),
    dict(use_exponential_sigmas=True),
    dict(clip_sample=True),
    dict(clip_sample=True, clip_sample_range=0.5, prediction_type="sample"),
    dict(prediction_type="v_prediction"),
]:
    CASES.append(("HeunDiscreteScheduler", 6, config, {}))
for config in [
    dict(),
    dict(timestep_spacing="leading"),
    dict(timestep_spacing="trailing"),
    dict(prediction_type="v_prediction"),
    ZERO_SNR,
]:
    CASES.append(("EulerAncestralDiscreteScheduler", 7, config, {}))
for steps, config in [
    (8, dict()),
    (8, dict(solver_order=1)),
    (8, dict(solver_order=3)),
    (20, dict(solver_order=3)),
    (20, dict(lower_order_final=False, euler_at_final=True, final_sigmas_type="sigma_min")),
    (8, dict(lower_order_final=False, final_sigmas_type="sigma_min", solver_order=3)),
    (8, dict(solver_type="heun")),
    (8, dict(timestep_spacing="leading", steps_offset=1)),
    (8, dict(timestep_spacing="trailing")),
    (8, dict(use_karras_sigmas=True)),
    (8, dict(beta_schedule="squaredcos_cap_v2")),
    (8, dict(use_exponential_sigmas=True)),
    (8, dict(use_lu_lambdas=True)),
    (8, dict(use_lu_lambdas=True, final_sigmas_type="sigma_min")),
    (8, dict(lambda_min_clipped=-1.0)),
    (8, dict(prediction_type="v_prediction")),
    (8, dict(prediction_type="sample")),
    (8, THRESHOLD),
    (8, ZERO_SNR),
    (8, dict(algorithm_type="dpmsolver", final_sigmas_type="sigma_min", solver_order=3)),
    (8, dict(algorithm_type="dpmsolver", final_sigmas_type="sigma_min", solver_type="heun", **THRESHOLD)),
    (8, dict(algorithm_type="sde-dpmsolver++")),
    (8, dict(algorithm_type="sde-dpmsolver++", solver_type="heun", use_karras_sigmas=True)),
    (8, dict(algorithm_type="sde-dpmsolver++", solver_order=3)),
    (8, dict(algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min")),
    (8, dict(algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min", solver_type="heun")),
]:
    CASES.append(("DPMSolverMultistepScheduler", steps, config, {}))
for steps, config in [
    (8, dict()),
    (8, dict(solver_order=1)),
    (8, dict(solver_order=3)),
    (20, dict(solver_order=4)),
    (8, dict(solver_type="bh1", final_sigmas_type="sigma_min")),
    (8, dict(solver_type="bh1", solver_order=3, final_sigmas_type="sigma_min")),
    (8, dict(predict_x0=False, final_sigmas_type="sigma_min")),
    (8, dict(predict_x0=False, final_sigmas_type="sigma_min", solver_order=3, prediction_type="sample")),
    (8, dict(disable_corrector=[0, 1, 4])),
    (8, dict(lower_order_final=False, final_sigmas_type="sigma_min", solver_order=3)),
    (8, dict(timestep_spacing="leading", steps_offset=1)),
    (8, dict(timestep_spacing="trailing")),
    (8, dict(use_karras_sigmas=True)),
    (8, dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=20.0, final_sigmas_type="sigma_min")),
    (8, dict(use_exponential_sigmas=True)),
    (8, dict(prediction_type="v_prediction")),
    (8, THRESHOLD),
    (8, ZERO_SNR),
]:
    CASES.append(("UniPCMultistepScheduler", steps, config, {}))


for kind in ["learned", "learned_range"]:
    CASES.append(("DDPMScheduler", 8, dict(variance_type=kind), {}))


def network(x, t):
    """A fixed function in place of a network; tests/diffusion/trajectory.rs has it too."""
    return 0.0008 * (t * x) + 0.3 * torch.nn.functional.silu(x) - 0.1


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
        return diffusers.DDPMScheduler(**config).betas
    finally:
        diffusers.schedulers.scheduling_ddpm.torch = module


def trajectory(name, steps, config, arguments, noise):
    """The states after every update of the state (Heun's predictor is none)."""
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        # Rounded labels may repeat; the first step is the first all the same.
        scheduler.set_begin_index(0)
    module = sys.modules[scheduler.__module__]
    x, states = noise[0] * scheduler.init_noise_sigma, []
    for i, t in enumerate(scheduler.timesteps):
        module.randn_tensor = lambda *a, **k: noise[1 + len(states)]
        seen = scheduler.scale_model_input(x, t)
        answer = network(seen, float(t))
        if config.get("variance_type", "").startswith("learned"):
            answer = torch.cat([answer, 0.3 * torch.nn.functional.silu(seen) + 0.1], dim=1)
        x = scheduler.step(answer, t, x, **arguments).prev_sample
        if getattr(scheduler, "state_in_first_order", True) or i + 1 == len(scheduler.timesteps):
            states.append(x)
    written = json.loads(scheduler.to_json_string().replace("-Infinity", "null"))
    case = dict(config=written, steps=steps, timesteps=scheduler.timesteps.tolist(), arguments=arguments)
    return case, torch.stack(states)


def main():
    torch.manual_seed(1)
    noise = torch.randn(1 + MOST_STEPS, *SHAPE)
    tensors = {"noise": noise}
    for i, config in enumerate(TABLES):
        betas = doubles(config)
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        single = diffusers.DDPMScheduler(**config).alphas_cumprod
        assert (single - alphas_cumprod).abs().max() < 2e-6
        tensors[f"table.{i}.betas"] = betas
        tensors[f"table.{i}.alphas_cumprod"] = alphas_cumprod
    cases = []
    for i, (name, steps, config, arguments) in enumerate(CASES):
        case, states = trajectory(name, steps, config, arguments, noise)
        assert states.isfinite().all(), case
        tensors[f"case.{i}"] = states
        cases.append(case)
    text = json.dumps(dict(tables=TABLES, cases=cases), indent=1)
    (FOLDER / "schedulers.json").write_text(text + "\n")
    save_file(tensors, FOLDER / "schedulers.safetensors")


main()
