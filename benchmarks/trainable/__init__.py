"""What does a quantizer cost inside a network, and how well does it learn? Ours beside a peer.

    python -m benchmarks.trainable --list
    python -m benchmarks.trainable --parts error --data patches
    python -m benchmarks.trainable
    python -m benchmarks.trainable --draw

Everything is resumable: what has a record is not measured again. Needs vector-quantize-pytorch,
the development data for the errors, and Linux for the memory.
"""
