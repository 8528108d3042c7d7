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


def test_an_unknown_method_is_refused(few_users):
    with pytest.raises(typer.BadParameter, match="bert4rec"):
        recommend.main(methods="bert4rec", work=few_users, out=few_users / "results.json")
