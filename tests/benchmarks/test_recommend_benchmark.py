"""The benchmark of recommenders measures each method once and keeps what it has."""

import numpy as np
import pytest
import typer

from benchmarks.records import read_records
from benchmarks.semantic_ids import recommend


@pytest.fixture
def few_users(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    lines = [f"{u} {' '.join(map(str, rng.permutation(20)[:6]))}" for u in range(40)]
    lines[0] += " 20"  # cold: nobody else has it
    folder = tmp_path / recommend.FOLDER
    folder.mkdir(parents=True)
    (folder / "sequences.txt").write_text("\n".join(lines))
    np.save(folder / "item_embeddings.npy", rng.normal(size=(21, 4)))
    monkeypatch.setattr(recommend, "development_file", lambda relative: tmp_path / relative)
    return tmp_path


def test_a_method_with_a_record_is_not_measured_again(few_users, capsys):
    out = few_users / "results.json"

    def run(methods, *, again=False):
        recommend.main(
            methods=methods, seeds="0", threads=1, again=again, work=few_users / "work", out=out
        )
        return read_records(out)

    first = run("popularity,blend")
    assert [record["method"] for record in first] == ["blend", "popularity"]
    assert first[0]["measures"]["test"]["all"]["users"] == 40
    assert "cold R@10" in capsys.readouterr().out
    second = run("popularity,markov")
    assert [record for record in second if record["method"] != "markov"] == first
    assert len(run("popularity", again=True)) == 3


def test_a_table_without_cold_users_has_a_gap(few_users, capsys):
    file = few_users / recommend.FOLDER / "sequences.txt"
    file.write_text("\n".join(file.read_text().splitlines()[1:]))
    recommend.main(
        methods="popularity", seeds="0", work=few_users / "work", out=few_users / "results.json"
    )
    assert read_records(few_users / "results.json")[0]["measures"]["test"]["cold"]["users"] == 0
    assert "Beauty, next item" in capsys.readouterr().out


def with_one_epoch(fit):
    return lambda *given, **named: fit(*given, **named | {"epochs": 1})


@pytest.mark.filterwarnings("ignore:SemanticIDs.fit. codebook_size")
def test_the_trainings_leave_what_they_go_on_from(few_users, monkeypatch):
    for recommender in (recommend.SASRec, recommend.GenerativeRecommender):
        monkeypatch.setattr(recommender, "fit", with_one_epoch(recommender.fit))
    found = {}
    for again in (False, True):
        recommend.main(
            methods="sasrec,generative", seeds="3", again=again, work=few_users / "work",
            out=few_users / "results.json",
        )  # fmt: skip
        for record in read_records(few_users / "results.json"):
            measures = record["measures"]
            found.setdefault(record["method"], []).append((measures["test"], measures["epochs"]))
    assert found["sasrec"][0] == found["sasrec"][1]
    assert found["generative"][0] == found["generative"][1]
    assert sorted(path.name for path in (few_users / "work").iterdir()) == [
        "generative-seed3.safetensors", "ids-seed3", "sasrec-seed3.safetensors",
    ]  # fmt: skip


def test_an_unknown_method_is_refused(few_users):
    with pytest.raises(typer.BadParameter, match="bert4rec"):
        recommend.main(methods="bert4rec", work=few_users, out=few_users / "results.json")


def test_the_published_results_are_of_committed_code_and_several_seeds():
    records = read_records(recommend.RESULTS)
    assert {record["method"] for record in records} == set(recommend.METHODS)
    assert not [record for record in records if record["commit"].endswith("+")]
    for method in recommend.TRAINED:
        assert [record["seed"] for record in records if record["method"] == method] == [0, 1, 2]
