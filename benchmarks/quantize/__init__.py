"""What do quantizers cost, and how low is their error at equal bits? Ours and peers in one run.

    python -m benchmarks.quantize --list
    python -m benchmarks.quantize --data patches --codes 8x256 --methods faiss-rq,residual
    python -m benchmarks.quantize
    python -m benchmarks.quantize --draw

Everything is resumable: what has a record is not measured again, and fitted quantizers stay in
the work folder. Needs faiss, vector-quantize-pytorch and the development data, and Linux for the
memory. Without `--threads` every library uses all cores.
"""
