"""Reads images in workers, and stops in the way the first argument names; run by a test."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from imagegen.data import batches
from imagegen.data.folders import open_folder
from imagegen.data.stored import StoredImages
from imagegen.runs import deferred_interrupt


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it
    torch.set_num_threads(1)
    way, folder = sys.argv[1], Path(sys.argv[2])
    table = open_folder(folder)
    data = StoredImages(table.records, np.arange(len(table.records)), 8, 3)
    before = torch.random.get_rng_state()
    reading = batches(data, batch_size=2, steps=10**6, seed=0, workers=2)
    next(reading)
    next(reading)  # from the other worker: now both have started
    assert torch.equal(before, torch.random.get_rng_state())
    if way == "close":
        reading.close()
    if way == "interrupt":
        try:
            with deferred_interrupt() as pressed:  # as the training loop does
                print("ready", flush=True)
                while not pressed():
                    next(reading)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    if way == "kill":
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        print("children", *children, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
