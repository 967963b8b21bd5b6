"""TensorFlow checkpoints, read without TensorFlow: the files `<prefix>.index` and `<prefix>.data-00000-of-0000N`.

The index is a table of LevelDB's format, sorted keys with shared prefixes in checksummed blocks. It maps the name of a
variable to a protocol buffer, `BundleEntryProto`: type, shape, place in a data file and checksum. The data files are
the bare numbers. (TensorFlow: core/protobuf/tensor_bundle.proto, core/lib/io/format.cc.)
"""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["read_tf_bundle"]

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_MOST = 1 << 28  # bytes of an index, or of a block in it
# DataType of types.proto; bfloat16, which NumPy lacks, as its bits.
_TYPES: dict[int, tuple[str, torch.dtype | None]] = {
    1: ("<f4", None),
    2: ("<f8", None),
    3: ("<i4", None),
    4: ("u1", None),
    5: ("<i2", None),
    6: ("i1", None),
    9: ("<i8", None),
    10: ("?", None),
    14: ("<i2", torch.bfloat16),
    19: ("<f2", None),
}
_STRING = 7


def read_tf_bundle(path: Path) -> dict[str, Tensor]:
    """The variables of a checkpoint by name; `path` is its `.index`, the data files lie beside it.

    Variables of strings, such as a description of objects, are left out. Checksums are compared. ValueError for
    anything that is not as the format says: a file that is missing, truncated or changed, big-endian numbers, a
    partitioned variable.
    """
    entries = dict(_table(path))
    if b"" not in entries:
        raise ValueError("the index has no header")
    header = _fields(entries.pop(b""), "the header")
    shards = _number(header, 1, 1)
    if _number(header, 2, 0):
        raise ValueError("its numbers are big-endian")
    if not 1 <= shards <= 99999:
        raise ValueError(f"{shards} data files")
    files: dict[int, NDArray[np.uint8]] = {}
    variables = {}
    for key, value in entries.items():
        try:
            name = key.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{key!r}: a name that is not UTF-8") from None
        entry = _fields(value, name)
        kind = _number(entry, 1, 0)
        if kind == _STRING:
            continue
        if kind not in _TYPES:
            raise ValueError(f"{name}: type {kind} of TensorFlow")
        if 7 in entry:
            raise ValueError(f"{name}: a partitioned variable")
        shard = _number(entry, 3, 0)
        if not 0 <= shard < shards:
            raise ValueError(f"{name}: in data file {shard} of {shards}")
        if shard not in files:
            file = path.with_name(f"{path.stem}.data-{shard:05d}-of-{shards:05d}")
            if not file.is_file():
                raise ValueError(f"{file.name} is not beside it")
            files[shard] = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)
        variables[name] = _variable(name, entry, kind, files[shard])
    return variables


def _variable(name: str, entry: dict[int, list[Any]], kind: int, data: NDArray[np.uint8]) -> Tensor:
    code, view = _TYPES[kind]
    shape = _shape(entry, name)
    offset, size = _number(entry, 4, 0), _number(entry, 5, 0)
    if size != math.prod(shape) * np.dtype(code).itemsize:
        raise ValueError(f"{name}: {size} bytes for shape {shape} of {code}")
    if offset + size > len(data):
        raise ValueError(f"{name}: bytes {offset} to {offset + size} of a data file of {len(data)}: truncated")
    numbers = np.array(data[offset : offset + size])
    if 6 in entry and _masked(crc32c(numbers)) != _number(entry, 6, 0):
        raise ValueError(f"{name}: wrong checksum")
    tensor = torch.from_numpy(numbers.view(code).reshape(shape))
    return tensor if view is None else tensor.view(view)


def _shape(entry: dict[int, list[Any]], name: str) -> tuple[int, ...]:
    shape = []
    for message in entry.get(2, [])[-1:]:
        fields = _fields(message, name)
        for dim in fields.get(2, []):
            shape.append(_number(_fields(dim, name), 1, 0))
        if _number(fields, 3, 0) or len(shape) > 8 or any(length >= 1 << 40 for length in shape):
            raise ValueError(f"{name}: shape {shape}")
    return tuple(shape)


# Protocol buffers, as much as these messages need.


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("a number is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, position
    raise ValueError("a number of more than 64 bits")


def _fields(data: Any, name: str) -> dict[int, list[Any]]:
    """Number of a field to its values: integers, or bytes of strings and messages."""
    if not isinstance(data, bytes):
        raise ValueError(f"{name}: a message is missing")
    fields: dict[int, list[Any]] = {}
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        value: Any
        if wire == 0:
            value, position = _varint(data, position)
        elif wire in (1, 2, 5):
            length = {1: 8, 5: 4}.get(wire)
            if length is None:
                length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError(f"{name}: its entry is cut off")
            value = data[position : position + length]
            value = value if wire == 2 else int.from_bytes(value, "little")
            position += length
        else:
            raise ValueError(f"{name}: its entry is no protocol buffer")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: dict[int, list[Any]], key: int, default: int) -> int:
    value = fields.get(key, [default])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {key} of an entry is no number")
    return value


# Tables.


def _table(path: Path) -> Iterator[tuple[bytes, bytes]]:
    size = path.stat().st_size
    if not _FOOTER <= size <= _MOST:
        raise ValueError(f"{size} bytes are no index of a TensorFlow checkpoint")
    data = path.read_bytes()
    footer = data[-_FOOTER:]
    if int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise ValueError("no index of a TensorFlow checkpoint, or truncated")
    _, position = _handle(footer, 0)
    where, _ = _handle(footer, position)
    last: bytes | None = None
    for _, value in _entries(_block(data, *where)):
        for key, entry in _entries(_block(data, *_handle(value, 0)[0])):
            if last is not None and key <= last:
                raise ValueError("the keys of the index are not sorted")
            last = key
            yield key, entry


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and the position behind them."""
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return (offset, size), position


def _block(data: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + 5 > len(data) - _FOOTER:
        raise ValueError("a block lies outside of the index: truncated")
    content = data[offset : end + 1]
    if _masked(crc32c(np.frombuffer(content, np.uint8))) != int.from_bytes(data[end + 1 : end + 5], "little"):
        raise ValueError("a block of the index has the wrong checksum")
    if content[-1] > 1:
        raise ValueError(f"a block of the index is compressed in way {content[-1]}")
    return _unsnappy(content[:-1]) if content[-1] else content[:-1]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values; a key is given by how many bytes it shares with the one before, and the rest."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if len(block) < 4 or end < 0:
        raise ValueError("a block of the index is cut off")
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position)
        rest, position = _varint(block, position)
        length, position = _varint(block, position)
        if shared > len(key) or position + rest + length > end:
            raise ValueError("an entry of the index is cut off")
        key = key[:shared] + block[position : position + rest]
        position += rest
        yield key, block[position : position + length]
        position += length


def _unsnappy(data: bytes) -> bytes:
    """Snappy's raw format: the length, then literals and copies of what is already there."""
    length, position = _varint(data, 0)
    if length > _MOST:
        raise ValueError(f"a block of {length} bytes")
    out = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        if tag & 3 == 0:
            count, extra = tag >> 2, 0
            if count >= 60:
                extra = count - 59
                count = int.from_bytes(data[position : position + extra], "little")
            position += extra
            count += 1
            if position + count > len(data):
                raise ValueError("a compressed block is cut off")
            out += data[position : position + count]
            position += count
        else:
            extra = (1, 2, 4)[(tag & 3) - 1]
            offset = int.from_bytes(data[position : position + extra], "little")
            count = (tag >> 2) + 1
            if extra == 1:
                offset, count = offset | tag >> 5 << 8, (tag >> 2 & 7) + 4
            position += extra
            if position > len(data) or not 0 < offset <= len(out):
                raise ValueError("a compressed block is damaged")
            start = len(out) - offset
            piece = out[start : start + count]
            out += (piece * (count // len(piece) + 1))[:count]  # what is copied may overlap what it makes
        if len(out) > length:
            raise ValueError("a compressed block is longer than it says")
    if len(out) != length:
        raise ValueError("a compressed block is shorter than it says")
    return bytes(out)


# CRC-32C (Castagnoli), of large arrays in lanes, side by side: a hundred megabytes in a second or so, without C.

_POLYNOMIAL = 0x82F63B78


@cache
def _crc_table() -> NDArray[np.uint32]:
    table: NDArray[Any] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ (_POLYNOMIAL * (table & 1)).astype(np.uint32)
    return table


def crc32c(data: NDArray[np.uint8]) -> int:
    """CRC-32C of bytes (n,)."""
    table = _crc_table()
    lanes = 1 << (len(data).bit_length() // 2) if len(data) > 4096 else 1
    length = len(data) // lanes if lanes > 1 else 0
    state = np.zeros(lanes, np.uint32)
    state[0] = 0xFFFFFFFF
    whole = data[: lanes * length].reshape(lanes, length)
    for start in range(0, length, 256):
        for column in np.ascontiguousarray(whole[:, start : start + 256].T):
            state = table[(state ^ column) & 255] ^ (state >> 8)
    # The state of a lane, moved on over as many zeros as the next has bytes, is added to that of the next.
    step = _zeros(length)
    while len(state) > 1:
        state = _applied(step, state[::2]) ^ state[1::2]
        step = _applied(step, step)
    crc, rest = int(state[0]), table.tolist()
    for byte in data[lanes * length :].tolist():
        crc = rest[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _zeros(count: int) -> NDArray[np.uint32]:
    """What `count` zero bytes make of a state, as the images of its 32 bits: the map is linear over GF(2)."""
    result = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
    power = _crc_table()[result & 255] ^ (result >> 8)
    while count:
        if count & 1:
            result = _applied(power, result)
        power = _applied(power, power)
        count >>= 1
    return result


def _applied(images: Any, state: NDArray[np.uint32]) -> NDArray[np.uint32]:
    out = np.zeros_like(state)
    for bit in range(32):
        out ^= images[bit] * ((state >> bit) & 1)
    return out


def _masked(crc: int) -> int:
    """How these files store a checksum."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
