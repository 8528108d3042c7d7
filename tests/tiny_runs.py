"""Settings of runs so small that tests can afford to train them."""

TINY_MODELS = {
    "data.resolution": 8,
    "autoencoder.channels": 4,
    "autoencoder.multipliers": [1, 2],
    "autoencoder.latent_channels": 8,
    "autoencoder.code_dim": 4,
    "quantizer.depth": 2,
    "quantizer.codebook_size": 8,
    "transformer.dim": 16,
    "transformer.num_heads": 2,
    "transformer.body_layers": 1,
    "stage1.warmup_steps": 0,
    "stage2.warmup_steps": 0,
}
