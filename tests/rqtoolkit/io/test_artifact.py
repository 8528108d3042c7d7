import json
import pickle
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rqtoolkit.errors import ArtifactError
from rqtoolkit.io.artifact import check_tensors, read_artifact, write_artifact

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
shapes = st.lists(st.integers(0, 4), max_size=3)


@given(
    st.dictionaries(st.text(), json_values, max_size=4),
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), shapes),
        max_size=5,
    ),
)
def test_round_trip(arguments, layout):
    tensors = {name: (10 * torch.randn(shape)).to(dtype) for name, (dtype, shape) in layout.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        write_artifact(path, class_name="Thing", arguments=arguments, tensors=tensors)
        found_arguments, found = read_artifact(path, class_name="Thing")
        peer = load_file(path)
    assert found_arguments == arguments
    assert found.keys() == peer.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


def test_views_and_parameters_are_stored_by_value(tmp_path):
    base = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    tensors = {"all": base, "column": base[:, 1], "transposed": base.T}
    write_artifact(tmp_path / "a", class_name="Thing", arguments={}, tensors=tensors)
    _, found = read_artifact(tmp_path / "a", class_name="Thing")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_equal_content_gives_equal_bytes_readable_by_others(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.int64)}
    for name, items in [("1", tensors), ("2", dict(reversed(tensors.items())))]:
        write_artifact(tmp_path / name, class_name="Thing", arguments={"k": 1}, tensors=items)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert (tmp_path / "1").stat().st_mode & 0o777 != 0o600  # as other files, by the umask


def written(tmp_path) -> Path:
    path = tmp_path / "a.safetensors"
    write_artifact(path, class_name="Thing", arguments={}, tensors={"a": torch.ones(8)})
    return path


def foreign(tmp_path, **metadata) -> Path:
    path = tmp_path / "foreign.safetensors"
    known = {"format": "rqtoolkit", "version": "1", "class": "Thing", "arguments": "{}"}
    save_file({"a": torch.ones(1)}, path, metadata=known | metadata)
    return path


def pickled(tmp_path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    return path


def cut(tmp_path, size) -> Path:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    return path


def lying_header(tmp_path) -> Path:
    path = tmp_path / "a"
    path.write_bytes(struct.pack("<Q", 2**60) + json.dumps({}).encode())
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none", "does not exist"),
        (lambda folder: folder, "is a folder"),
        (lambda folder: cut(folder, 0), "truncated"),
        (lambda folder: cut(folder, 5), "truncated"),
        (lambda folder: cut(folder, -4), "truncated"),
        (lying_header, "truncated"),
        (pickled, "not a readable"),
        (lambda folder: foreign(folder, format="pt"), "format='pt'"),
        (lambda folder: foreign(folder, version="99"), "version='99'"),
        (lambda folder: foreign(folder, **{"class": "Other"}), "class='Other'"),
        (lambda folder: foreign(folder, arguments="{"), "damaged"),
        (lambda folder: foreign(folder, arguments="[1]"), "damaged"),
    ],
)
def test_bad_files(tmp_path, make, words):
    with pytest.raises(ArtifactError, match=words) as caught:
        read_artifact(make(tmp_path), class_name="Thing")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_stored_leaves_nothing(tmp_path):
    bad = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(TypeError, match="complex64"):
        write_artifact(tmp_path / "a", class_name="Thing", arguments={}, tensors={"a": bad})
    with pytest.raises(TypeError, match="JSON"):
        write_artifact(tmp_path / "a", class_name="Thing", arguments={"k": bad}, tensors={})
    assert list(tmp_path.iterdir()) == []


def test_check_tensors_names_each():
    expected = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}
    check_tensors("file", expected, dict(expected))
    with pytest.raises(ArtifactError) as caught:
        check_tensors(
            "file", expected, {"b": torch.ones(4), "c": torch.ones(1), "d": torch.ones(1)}
        )
    for words in ["missing a", "unexpected d", "b has shape (4,) in place of (3,)"]:
        assert words in str(caught.value)


def test_check_tensors_keeps_long_lists_short():
    with pytest.raises(ArtifactError, match="and 3 more"):
        check_tensors("file", {str(i): torch.ones(1) for i in range(8)}, {})
