//! Networks against diffusers and PyTorch: tests/golden/unet.py made the files.

mod golden;
mod inception;
mod unet_config;
mod unet_golden;
