import math

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.records import read_records, write_records
from benchmarks.trainable import __main__ as command
from benchmarks.trainable.batches import train_on_batches
from benchmarks.trainable.plan import OWN, QUANTIZERS, SHAPES, Shape, build
from benchmarks.trainable.steps import PEER, measure_times
from benchmarks.trainable.tables import MARKS, replace_tables, tables
from benchmarks.trainable.training import SETS, Autoencoder


def record(part, case, quantizer, **measures):
    return {"part": part, "case": case, "quantizer": quantizer, "measures": measures}


RECORDS = (
    record(
        "speed",
        "64-4x1024-2048",
        "both",
        **{
            OWN: {"seconds": 1.0, "cpu_seconds": 0.01},
            PEER: {"seconds": 2.0, "cpu_seconds": 0.1},
            "ratio": {"seconds": 0.5, "cpu_seconds": 0.11},
        },
    ),
    record("memory", "64-4x1024-2048", OWN, extra_bytes=2**20),
    record("memory", "64-4x1024-2048", PEER, extra_bytes=2**24),
    record("memory", "256-4x1024-2048", OWN, extra_bytes=2**20),
    *(
        record(
            "error",
            f"patches-{seed}",
            "vqp",
            relative_error=0.1 + seed / 10,
            usage=[1.0, 0.5 + seed / 10],
            training_cpu_seconds=7.0,
        )
        for seed in (0, 2)
    ),
    record(
        "batches", "white-shared-0.25", OWN, relative_error=0.5, training_error=0.4, usage=0.995
    ),
)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_gives_vectors_codes_and_a_loss(name):
    layer = build(name, 8, 3, 16)
    quantized, codes, loss = layer(torch.randn(4, 20, 8))
    assert (quantized.shape, codes.shape, loss.shape) == ((4, 20, 8), (4, 20, 3), ())


@pytest.mark.parametrize("name", SETS)
def test_the_networks_lead_back_to_where_they_came_from(name):
    encoder, decoder = SETS[name].networks()
    x = torch.randn(40, {"fashion": 784, "patches": 192}[name])
    output, codes, _ = Autoencoder(encoder, build(OWN, 64, 2, 16), decoder)(x)
    assert output.shape == x.shape
    assert codes.shape == {"fashion": (40, 49, 2), "patches": (40, 2)}[name]


def test_steps_are_timed_in_turn():
    times = measure_times(Shape(8, 2, 16, 64), repeats=2)
    assert times["ratio"]["cpu_seconds"] > 0
    assert times[OWN].keys() == times[PEER].keys() == times["ratio"].keys()


def test_errors_by_batch_size_are_shares():
    measures = train_on_batches("unequal", "per-level", 4, size=8, steps=5)
    assert all(0 < value <= 1 for value in measures.values())


class TestJobs:
    def test_every_job_is_one_of_a_kind(self):
        jobs = list(command.jobs(command.PARTS, SETS, 3))
        assert len(set(jobs)) == len(jobs)
        assert len(jobs) == len(SHAPES) * 2 + math.prod((3, len(SETS), len(QUANTIZERS))) + 20

    def test_what_has_a_record_is_not_listed(self, tmp_path):
        app = typer.Typer()
        app.command()(command.main)
        out = tmp_path / "results.json"
        write_records(out, RECORDS)
        arguments = ["--list", "--parts", "batches", "--out", str(out)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert len(result.output.splitlines()) == 19
        assert "batches white-shared-0.25" not in result.output


class TestTables:
    def test_costs_stand_beside_their_ratios(self):
        rows = tables(RECORDS).split("### Learning")[0].strip().splitlines()
        assert len(rows) == 5  # none of what was measured of one library alone
        assert rows[-1] == "| 4×1,024 | 64 | 2,048 | 10.0 | 100 | 0.11 | 1.00 | 16.0 | 0.06 |"

    def test_errors_are_means_over_seeds(self):
        line = tables(RECORDS).split("### Learning")[1].split("###")[0].strip().splitlines()[-1]
        assert "| 0.2000 | 0.1000 0.3000 | 1.000 0.600 | 7.00 |" in line

    def test_batch_sizes_stand_in_columns(self):
        line = tables(RECORDS).strip().splitlines()[-1]
        assert line == (
            "| white features, shared codebook | – | – | – | 0.5000 | – | 0.995 | 25.00% |"
        )

    def test_only_what_stands_between_the_marks_changes(self):
        page = f"Above.\n\n{MARKS[0]}\nold\n{MARKS[1]}\n\nBelow.\n"
        new = replace_tables(page, RECORDS)
        assert (new[:7], new[-8:]) == ("Above.\n", "\nBelow.\n")
        assert replace_tables(new, RECORDS) == new

    def test_the_page_holds_the_tables_of_the_committed_results(self):
        page = command.PAGE.read_text(encoding="utf-8")
        assert replace_tables(page, read_records(command.RESULTS)) == page

    def test_committed_results_are_of_committed_code(self):
        assert not [r for r in read_records(command.RESULTS) if r["commit"].endswith("+")]
