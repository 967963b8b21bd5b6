"""NumPy pickles of every protocol and of Python 2, and those that want more than arrays."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from mdepth_fast.weights.numpy_pickle import read_numpy_pickle

CONTENT = {
    "conv1": {"weights": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "biases": np.array([1.5, -2.0])},
    "steps": np.arange(5),
    "mask": np.array([True, False]),
    "transposed": np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
    "big_endian": np.array([1.0, 256.0], dtype=">f4"),
    "strided": np.arange(10, dtype=np.float64)[::3],
    "one": np.float64(2.5),
    "whole": np.array(7, dtype=np.int64),
    "list": [np.zeros(2, np.float32), "text", 3, None],
    "ordered": OrderedDict(a=np.ones(1, np.uint8)),
}


def expected(value):
    if isinstance(value, dict):
        return {key: expected(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return {str(n): expected(entry) for n, entry in enumerate(value)}
    if isinstance(value, np.ndarray | np.generic):
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    return value


def assert_same(actual, wanted):
    assert type(actual) is type(wanted)
    if isinstance(wanted, dict):
        assert list(actual) == list(wanted)
        for key in wanted:
            assert_same(actual[key], wanted[key])
    elif isinstance(wanted, torch.Tensor):
        assert actual.dtype == wanted.dtype and torch.equal(actual, wanted)
    else:
        assert actual == wanted


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(tmp_path, protocol):
    path = tmp_path / "content.pk"
    path.write_bytes(pickle.dumps(CONTENT, protocol))
    assert_same(read_numpy_pickle(path), expected(CONTENT))


def test_npy_of_a_dictionary(tmp_path):
    np.save(tmp_path / "content.npy", CONTENT, allow_pickle=True)
    assert_same(read_numpy_pickle(str(tmp_path / "content.npy")), expected(CONTENT))


def test_npy_of_a_list_of_arrays(tmp_path):
    content = np.empty(2, dtype=object)
    content[0], content[1] = np.ones((2, 3)), np.zeros(3)
    np.save(tmp_path / "content.npy", content, allow_pickle=True)
    assert_same(read_numpy_pickle(tmp_path / "content.npy"), expected([np.ones((2, 3)), np.zeros(3)]))


def test_python_2(tmp_path):
    """`cPickle.dumps({"W": array}, 2)` as Python 2 writes it: its str are byte strings."""
    data = np.array([[1.0, -2.0], [3.5, 200.0]], np.float32)
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nq\x04U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01K\x02K\x02\x86" + dtype + b"\x89U\x10" + data.tobytes() + b"tb"
    (tmp_path / "params.pk").write_bytes(b"\x80\x02}q\x01U\x01W" + array + state + b"s.")
    assert_same(read_numpy_pickle(tmp_path / "params.pk"), {"W": torch.from_numpy(data)})


class Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("function", "name"), [(os.mkdir, r"posix\.mkdir|nt\.mkdir"), (eval, r"(__builtin__|builtins)\.eval")]
)
def test_nothing_is_run(tmp_path, protocol, function, name):
    target = tmp_path / "made"
    argument = str(target) if function is os.mkdir else f"__import__('os').mkdir({str(target)!r})"
    (tmp_path / "evil.pk").write_bytes(pickle.dumps({"w": np.ones(2), "x": Runs(function, argument)}, protocol))
    with pytest.raises(ValueError, match=rf"evil\.pk: .*refused: it holds Python objects, such as ({name})"):
        read_numpy_pickle(tmp_path / "evil.pk")
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(2, dtype=[("a", "f4")]), "refused: an array of dtype 'V4'"),
        (np.array(["text"]), "refused: an array of dtype 'U4'"),
        (np.array([[None, 1], [2, 3]], dtype=object), r"refused: objects in an array of shape \(2, 2\)"),
        ({"a": {1, 2}}, "refused"),
        ({"a": Path("x")}, r"refused: it holds Python objects, such as pathlib"),
        (np.ones(3), "expected a dictionary or a list of arrays, got Tensor"),
        ("text", "expected a dictionary or a list of arrays, got str"),
    ],
)
def test_other_content(tmp_path, content, message):
    (tmp_path / "content.pk").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=rf"content\.pk: .*{message}"):
        read_numpy_pickle(tmp_path / "content.pk")


def test_npy_of_numbers(tmp_path):
    np.save(tmp_path / "depth.npy", np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"depth\.npy: .*expected a pickled dictionary, got one array of float64"):
        read_numpy_pickle(tmp_path / "depth.npy")


def test_numbers_that_do_not_fill_the_array(tmp_path):
    raw = pickle.dumps({"a": np.arange(3, dtype=np.int64)}, 2)
    (tmp_path / "a.pk").write_bytes(raw.replace(b"K\x03\x85", b"K\x09\x85", 1))
    with pytest.raises(ValueError, match=r"a\.pk: .*3 numbers in an array of shape \(9,\)"):
        read_numpy_pickle(tmp_path / "a.pk")


@pytest.mark.parametrize("suffix", ["pk", "npy"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"content.{suffix}"
    if suffix == "pk":
        path.write_bytes(pickle.dumps(CONTENT, 2))
    else:
        np.save(path, CONTENT, allow_pickle=True)
    whole = path.read_bytes()
    for raw in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1], b"not a pickle"):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=rf"content\.{suffix}: damaged, truncated or not a pickle") as caught:
            read_numpy_pickle(path)
        assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_numpy_pickle(tmp_path / "none.npy")
