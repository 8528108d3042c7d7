import statistics

import numpy as np
import pytest

from benchmarks.records import find, read_records
from benchmarks.semantic_ids import fit


@pytest.mark.slow  # fits four times
def test_measures_of_a_small_catalogue_make_sense(monkeypatch):
    monkeypatch.setattr(fit, "PLACES", 20)
    monkeypatch.setattr(fit, "DIM", 8)
    x = fit.mixture(400)
    figures = fit.measure(x, {"settings": {"rounds": 1}}, seed=0)
    assert figures["matched_duplicate_rate"] == 0
    assert max(figures["used"]) <= 256
    assert figures["mse"] < np.square(x - x.mean(axis=0)).sum(axis=1).mean()
    grown = fit.measure_growth(x, seed=0)
    assert grown["unchanged"] == 1
    assert grown["duplicate_rate"] == 0
    assert grown["new_mse"] / grown["fitted_mse"] - 1 == pytest.approx(grown["new_increase"])


@pytest.mark.parametrize("setting", ["default", "balance 4", "balance 2", "growth"])
def test_records_are_of_five_seeds_and_of_committed_programs(setting):
    records = find(read_records(fit.RESULTS), setting=setting)
    assert [record["seed"] for record in records] == list(range(5))
    assert not [record for record in records if record["commit"].endswith("+")]


def test_records_bear_out_what_the_documentation_says():
    def measures(setting, name):
        records = find(read_records(fit.RESULTS), setting=setting)
        return [record["measures"][name] for record in records]

    assert max(measures("default", "mse")) < 0.28
    assert max(measures("default", "duplicate_rate")) <= 0.102
    assert max(measures("default", "matched_increase")) < 0.01
    assert min(min(used) for used in measures("default", "used")) == 256
    assert min(first for first, *_ in measures("default", "perplexity")) > 220
    assert max(measures("balance 4", "duplicate_rate")) <= 0.08
    assert max(measures("default", "matched_duplicate_rate")) == 0
    assert statistics.mean(measures("growth", "new_increase")) <= 0.16
    assert min(measures("growth", "unchanged")) == 1
    assert max(measures("growth", "duplicate_rate")) == 0
    assert min(kept[0] for kept in measures("growth", "refit_kept")) > 0.95
