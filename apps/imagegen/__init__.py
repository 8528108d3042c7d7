"""Image generation with residual quantization: the system of Lee et al., CVPR 2022."""
