"""TensorFlow's checkpoints: every form that is written, and every way a file can be wrong."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tf_bundle_writer import crc32c as plain_crc32c
from tf_bundle_writer import field, fixed32, masked, snappy, write_bundle, write_table

from mdepth_fast.weights import read_content
from mdepth_fast.weights.tf_bundle import _unsnappy, crc32c


def variables() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    scope = [f"depth_net/cnv{n}/{part}" for n in range(1, 8) for part in ("weights", "biases", "weights/Adam")]
    found = {name: rng.normal(size=(3, 2, 4, n + 1)).astype(np.float32) for n, name in enumerate(scope)}
    return found | {
        "global_step": np.array(119496, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "flag": np.array([True, False]),
        "half": rng.normal(size=5).astype(np.float16),
        "double": rng.normal(size=(2, 2)),
    }


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "snappy"])
@pytest.mark.parametrize("shards", [1, 3])
def test_variables_come_back(tmp_path: Path, shards: int, compress: bool) -> None:
    expected = variables()
    index = write_bundle(tmp_path / "model-119496", expected | {"graph": b"strings"}, shards=shards, compress=compress)
    content = read_content(index)
    assert content.keys() == expected.keys()
    for name, value in expected.items():
        assert content[name].numpy().dtype == value.dtype
        np.testing.assert_array_equal(content[name].numpy(), value)
    # By any of its names.
    data = tmp_path / f"model-119496.data-00000-of-{shards:05d}"
    (tmp_path / "model-119496.meta").write_bytes(b"graph")
    for path in (tmp_path / "model-119496", data, tmp_path / "model-119496.meta"):
        assert read_content(path).keys() == expected.keys()


def test_bfloat16(tmp_path: Path) -> None:
    raw = torch.tensor([1.5, -2.0]).bfloat16()
    bits = raw.view(torch.int16).numpy().tobytes()
    entry = field(1, 14) + field(2, field(2, field(1, 2))) + field(5, 4) + fixed32(6, masked(bits))
    index = write_bundle(tmp_path / "m", {"x": np.frombuffer(bits, np.float16)}, change={"x": entry})
    assert torch.equal(read_content(index)["x"], raw)


def test_checksums_are_those_of_the_standard() -> None:
    assert crc32c(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283  # RFC 3720, as the next
    assert crc32c(np.zeros(32, np.uint8)) == 0x8A9136AA
    data = np.random.default_rng(0).integers(0, 256, 8 * 2**14 + 5, dtype=np.uint8)
    for size in (1, 4096, 4097, 5000, len(data)):  # one after the other, in lanes, in lanes with a rest
        assert crc32c(data[:size]) == plain_crc32c(data[:size].tobytes())


@pytest.mark.parametrize("data", [b"", b"a", b"abcd" * 100, bytes(range(256)) * 20, b"xy" + b"a" * 5000 + b"xyz"])
def test_snappy(data: bytes) -> None:
    assert _unsnappy(snappy(data)) == data


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"", "cut off"),
        (b"\x05\x00a", "shorter than it says"),
        (b"\x01\x04ab", "longer than it says"),
        (b"\x05\xf0", "cut off"),
        (b"\x05\x10ab", "cut off"),
        (b"\x08\x00a\x05\x02", "damaged"),  # a copy from before the beginning
        (b"\x08\x00a\x05\x00", "damaged"),
        (b"\x08\x00a\x06\x01", "damaged"),  # the offset is cut off
        (b"\xff\xff\xff\xff\x0f\x00a", "a block of"),
    ],
)
def test_damaged_snappy(packed: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _unsnappy(packed)


X = np.arange(6, dtype=np.float32).reshape(2, 3)
SUM = fixed32(6, masked(X.tobytes()))
SHAPE = field(2, field(2, field(1, 2)) + field(2, field(1, 3)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (field(1, 1) + SHAPE + field(5, 20) + SUM, r"x: 20 bytes for shape \(2, 3\) of <f4"),
        (field(1, 1) + SHAPE + field(4, 4) + field(5, 24) + SUM, "x: bytes 4 to 28 of a data file of 24: truncated"),
        (field(1, 1) + SHAPE + field(5, 24) + fixed32(6, 1), "x: wrong checksum"),
        (field(1, 21) + SHAPE + field(5, 24) + SUM, "x: type 21 of TensorFlow"),
        (field(1, 1) + SHAPE + field(3, 1) + field(5, 24) + SUM, "x: in data file 1 of 1"),
        (field(1, 1) + SHAPE + field(5, 24) + SUM + field(7, b""), "x: a partitioned variable"),
        (field(1, 1) + field(2, field(2, field(1, 2**64 - 1))) + field(5, 24), r"x: shape \[18446744073709551615\]"),
        (field(1, 1) + field(2, field(3, 1)) + field(5, 24), "x: shape"),
        (field(1, b"float") + SHAPE + field(5, 24), "field 1 of an entry is no number"),
        (field(1, 1) + field(2, 7) + field(5, 24), "x: a message is missing"),
        (b"\x0f", "x: its entry is no protocol buffer"),
        (b"\x12\x7f\x00", "x: its entry is cut off"),
        (b"\x08", "a number is cut off"),
        (b"\x08" + b"\xff" * 12, "more than 64 bits"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: bytes, message: str) -> None:
    index = write_bundle(tmp_path / "m", {"x": X}, change={"x": entry})
    with pytest.raises(ValueError, match=message) as error:
        read_content(index)
    assert str(index) in str(error.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (field(1, 1) + field(2, 1), "big-endian"),
        (field(1, 0), "0 data files"),
        (field(1, 2**40), "1099511627776 data files"),
        (field(1, 2), "m.data-00000-of-00002 is not beside it"),
    ],
)
def test_a_wrong_header(tmp_path: Path, header: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_content(write_bundle(tmp_path / "m", {"x": X}, header=header))


def test_every_flipped_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    """But in the padding of the footer, and in the first block's handle there, which nothing reads."""
    index = write_bundle(tmp_path / "m", {"x": X, "y": X})
    whole = index.read_bytes()
    for place in [*range(0, len(whole) - 48, 3), *range(len(whole) - 8, len(whole))]:
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            assert read_content(index).keys() == {"x", "y"}, place
        except ValueError:
            continue
        # The empty metaindex is not read.
        assert len(whole) - 120 < place, place
    for length in range(0, len(whole), 7):
        index.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"m\.index: damaged"):
            read_content(index)
    index.write_bytes(whole)
    data = index.with_name("m.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated"):
        read_content(index)


def test_a_table_out_of_order_and_one_without_a_header(tmp_path: Path) -> None:
    write_table(tmp_path / "a.index", [(b"", field(1, 1)), (b"y", b""), (b"x", b"")])
    with pytest.raises(ValueError, match="not sorted"):
        read_content(tmp_path / "a.index")
    write_table(tmp_path / "b.index", [(b"x", b"")])
    with pytest.raises(ValueError, match="no header"):
        read_content(tmp_path / "b.index")
    (tmp_path / "c.index").write_bytes(b"\0" * 40 + struct.pack("<Q", 0xDB4775248B80FB57))
    with pytest.raises(ValueError, match=r"c\.index: damaged"):
        read_content(tmp_path / "c.index")
    with pytest.raises(FileNotFoundError, match="d: no such checkpoint"):
        read_content(tmp_path / "d")
