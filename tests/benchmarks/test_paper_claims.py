import io
import json

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from benchmarks.development_data import prepare_images
from benchmarks.paper_claims import __main__ as command
from benchmarks.paper_claims.figures import draw_figures
from benchmarks.paper_claims.plan import PARTS, TASKS, ordered, remaining
from benchmarks.paper_claims.tables import MARKS, replace_tables, tables
from benchmarks.paper_claims.work import configure
from benchmarks.records import find, merge, read_records, write_records


def record(task, *, data="fashion", seed=0, **measures):
    return {"data": data, "seed": seed, "task": task, "cpu_seconds": 1.0, "measures": measures}


def stage1(task, error, *, bits=128.0, **where):
    return record(
        task,
        relative_error=[0.5, error],
        bits_per_image=bits,
        frechet_distance=10.0,
        usage=[0.5, 1.0],
        class_accuracy=0.9,
        **where,
    )


def names(tasks):
    return [task.name for task in tasks]


class TestPlan:
    def test_every_part_names_tasks_and_every_task_serves_a_part(self):
        used = {task.name for part in PARTS.values() for task in ordered(part)}
        assert used == set(TASKS)

    def test_needs_come_first_and_once(self):
        assert names(ordered(["sampling-time", "hard"])) == [
            "depth4",
            "hard",
            "long",
            "long-hard",
            "sampling-time",
        ]

    def test_done_tasks_are_left_out(self):
        done = {"depth4", "hard"}
        todo = remaining(["hard", "soft-paper"], done=done.__contains__, ready=lambda _: True)
        assert names(todo) == ["soft-paper"]

    def test_lost_models_are_trained_again_only_where_a_later_task_needs_them(self):
        done = {"depth4", "depth8", "hard"}
        todo = remaining(
            ["depth8", "hard", "soft-paper"], done=done.__contains__, ready=lambda _: False
        )
        assert names(todo) == ["depth4", "soft-paper"]

    def test_nothing_remains_of_what_is_done(self):
        assert not remaining(TASKS, done=lambda _: True, ready=lambda _: False)

    @pytest.mark.parametrize("task", [t for t in TASKS.values() if t.kind != "timing"])
    def test_configurations_differ_from_the_base_by_their_settings_alone(self, task, tmp_path):
        base = configure(TASKS["depth4"], 3, tmp_path / "images.npz")
        config = configure(task, 3, tmp_path / "images.npz")
        changed = {
            f"{section}.{name}"
            for section in ("data", "autoencoder", "quantizer", "stage1", "transformer", "stage2")
            for name, value in vars(getattr(config, section)).items()
            if value != getattr(getattr(base, section), name)
        }
        assert config.seed == 3
        needed = set().union(*(TASKS[need].settings for need in task.needs))
        assert changed <= set(task.settings) | needed

    def test_both_code_grids_hold_the_same_codes_and_bits(self, tmp_path):
        shapes = []
        for name in ("depth4", "long"):
            config = configure(TASKS[name], 0, tmp_path / "images.npz")
            side = config.data.resolution // 2 ** (len(config.autoencoder.multipliers) - 1)
            shapes.append((side**2 * config.quantizer.depth, config.quantizer.codebook_size))
        assert shapes == [(64, 256), (64, 256)]


class TestResults:
    def test_a_new_record_replaces_the_old_one_of_its_task_data_set_and_seed(self):
        old = [record("hard", seed=1, x=1), record("hard", x=1)]
        assert merge(old, [record("hard", x=2)], command.KEYS) == [record("hard", x=2), old[0]]

    def test_round_trip(self, tmp_path):
        path = tmp_path / "new" / "results.json"
        assert read_records(path) == []
        write_records(path, [record("soft-paper"), record("depth1", data="cifar")])
        assert [r["task"] for r in read_records(path)] == ["soft-paper", "depth1"]
        assert find(read_records(path), data="cifar", seed=0) == [record("depth1", data="cifar")]

    def test_committed_results_name_tasks_of_the_plan_within_their_time(self):
        for found in read_records(command.RESULTS):
            assert found["task"] in TASKS
            assert found["cpu_seconds"] < 240
            assert found["commit"]
            assert not found["commit"].endswith("+")


class TestReport:
    def test_means_and_spread_over_seeds(self):
        # errors of 10, 12, 14 %: mean 12, sample standard deviation 2
        records = [stage1("depth1", e, seed=s) for s, e in enumerate((0.10, 0.12, 0.14))]
        lines = tables(records).splitlines()
        assert lines[0] == "### Fashion-MNIST, 3 seeds"
        assert lines[-1] == "| 1 code of 256 | 128 | 12.0 ± 2.00 % | 10.0 | 75.0 % |"

    def test_timings_become_a_ratio(self):
        times = record("sampling-time", hard={"1": 0.01}, **{"long-hard": {"1": 0.025}})
        assert tables([times]).splitlines()[-1] == "| 1 | 10.0 | 25.0 | 2.50 |"

    def test_only_what_stands_between_the_marks_of_a_page_changes(self):
        page = f"Above.\n\n{MARKS[0]}\nold\n{MARKS[1]}\n\nBelow.\n"
        new = replace_tables(page, [stage1("depth1", 0.12)])
        assert (new[:7], new[-8:]) == ("Above.\n", "\nBelow.\n")
        assert "old" not in new
        assert "12.0 %" in new
        assert replace_tables(new, [stage1("depth1", 0.12)]) == new

    def test_the_page_holds_the_tables_of_the_committed_results(self):
        page = command.PAGE.read_text(encoding="utf-8")
        assert replace_tables(page, read_records(command.RESULTS)) == page

    def test_figures_are_drawn_from_part_of_the_results(self, tmp_path):
        records = [stage1("depth1", 0.2), stage1("depth4", 0.1, bits=512.0, data="cifar")]
        for path in draw_figures(records, tmp_path):
            with Image.open(path) as picture:
                assert picture.width > 100


def test_jpeg_files_laid_end_to_end_are_decoded(tmp_path, monkeypatch):
    def jpeg(grey):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (grey, grey, grey)).save(file, "JPEG")
        return np.frombuffer(file.getvalue(), np.uint8)

    arrays = {"class_names": np.array(["a", "b"])}
    for part, greys in (("train", (10, 200)), ("test", (90,))):
        files = [jpeg(grey) for grey in greys]
        arrays[f"jpeg_{part}"] = np.concatenate(files)
        arrays[f"offsets_{part}"] = np.cumsum([0, *map(len, files)])
        arrays[f"y_{part}"] = np.arange(len(greys), dtype=np.uint8)
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    np.savez(folder / "cifar10_10k_jpeg.npz", **arrays)
    monkeypatch.setenv("RQTOOLKIT_TEST_DATA", str(tmp_path))
    found = np.load(prepare_images("cifar", tmp_path / "work"))
    assert found["x_train"].shape == (2, 32, 32, 3)
    assert found["x_test"].shape == (1, 32, 32, 3)
    np.testing.assert_allclose(found["x_train"].mean((1, 2, 3)), (10, 200), atol=1)


def test_the_list_shows_what_is_done(tmp_path):
    app = typer.Typer()
    app.command()(command.main)
    out = tmp_path / "results.json"
    out.write_text(json.dumps([record("depth4")]), encoding="utf-8")
    arguments = ["--list", "--part", "shared", "--data", "fashion", "--seed", "0"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert [line.split()[2:4] for line in result.output.splitlines()] == [
        ["depth4", "1.0"],
        ["per-depth", "to"],
    ]
