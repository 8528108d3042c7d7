"""Do the paper's claims show at a small scale? Some seventy trainings of a minute or two each.

    python -m benchmarks.paper_claims --list
    python -m benchmarks.paper_claims --part depth --data fashion --seed 0
    python -m benchmarks.paper_claims

Everything is resumable: what has a result is not trained again. Without a GPU all of it takes
about two CPU hours on one thread.
"""
