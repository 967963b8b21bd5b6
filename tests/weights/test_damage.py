"""Damaged files of weights give an error that names them, or the weights that were written."""

import pytest
import torch
from damage import FORMATS, WITHOUT_CHECKSUM, outcomes, tensors
from safetensors import safe_open
from safetensors.torch import save_file

from mdepth_fast.weights import converted_model, read_content, write_converted
from mdepth_fast.weights.read import CHECKSUM, checksum


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_bit_or_a_lost_end_is_an_error_or_changes_nothing(tmp_path, name):
    found = outcomes(tmp_path, name, 60, seed=3)
    allowed = {"error", "same", *(["other"] if name in WITHOUT_CHECKSUM else [])}
    assert set(found) <= allowed and found["error"] > 10, found


def test_every_bit_counts_for_the_checksum():
    state, metadata = tensors(), {"a": "b"}
    before = checksum(state, metadata)
    for name, value in state.items():
        content = value.view(-1).view(torch.uint8)
        for place in {0, len(content) // 3, len(content) - 1}:
            for bit in (0, 7):
                content[place] ^= 1 << bit
                assert checksum(state, metadata) != before, (name, place, bit)
                content[place] ^= 1 << bit
    assert checksum(state, metadata) == before == checksum(dict(reversed(state.items())), {CHECKSUM: "?", **metadata})
    assert checksum(state, {"a": "c"}) != before
    swapped = {**state, "encoder.conv1.weight": state["encoder.conv1.weight"].flip(0)}
    assert checksum(swapped, metadata) != before


def test_a_file_without_a_checksum_is_read(tmp_path):
    path = tmp_path / "old.safetensors"
    write_converted(path, "posecnn", {"frames": 2}, tensors(), "x.pth")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors(), path, {key: value for key, value in metadata.items() if key != CHECKSUM})
    assert all(torch.equal(value, tensors()[key]) for key, value in read_content(path).items())
    assert converted_model(path) == ("posecnn", {"frames": 2})


def test_other_metadata_beside_the_same_tensors_are_seen(tmp_path):
    path = tmp_path / "net.safetensors"
    write_converted(path, "posecnn", {"frames": 2}, tensors(), "x.pth")
    path.write_bytes(path.read_bytes().replace(rb"{\"frames\": 2}", rb"{\"frames\": 3}"))
    assert converted_model(path)[1] == {"frames": 3}
    with pytest.raises(ValueError, match=r"net\.safetensors: damaged.*its checksum does not fit"):
        read_content(path)
