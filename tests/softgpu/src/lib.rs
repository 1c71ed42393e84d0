//! A CUDA driver that executes PTX on the CPU: test equipment.
