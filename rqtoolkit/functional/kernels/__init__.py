"""Inner loops: compiled for the CPU and the GPU, and in plain torch, with equal results."""
