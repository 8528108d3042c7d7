import numpy as np

from benchmarks.semantic_ids.decoding import SIZES, masks, searches, table_times
from rqtoolkit.semantic_ids.decoding import PrefixTable


def test_measures_of_a_small_catalogue():
    codes = np.unique(np.random.default_rng(0).integers(256, size=(60, 3)), axis=0)
    table = PrefixTable(codes, SIZES)
    times = {**table_times(codes, 1), **masks(codes, table, 8, 1)}
    assert times["items"] == len(codes)
    assert len(times["mask_and_step_ms_dictionaries"]) == 3
    found = searches(codes, table, users=4, beams=5, repeats=1)
    assert found["valid"] == 1
    assert found["exact_with_all_beams"]
