"""Writes checkpoints of TensorFlow's format, for tests: `<prefix>.index` and `<prefix>.data-00000-of-0000N`.

Written from the format's description, with a checksum a byte at a time: nothing in common with the reader.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10, "float16": 19}


def _shifted(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_SHIFTED = [_shifted(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _SHIFTED[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def fixed32(number: int, value: int) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<I", value)


def snappy(data: bytes) -> bytes:
    """Literals, and copies where four bytes were there before; each of the forms of both occurs."""
    out, position, literal = bytearray(varint(len(data))), 0, 0

    def flush(end: int) -> None:
        nonlocal literal
        while literal < end:
            piece = data[literal : min(end, literal + 300)]
            size = len(piece) - 1
            out.extend(bytes([size << 2]) if size < 60 else b"\xf4" + struct.pack("<H", size))
            out.extend(piece)
            literal += len(piece)

    while position < len(data):
        found = data.rfind(data[position : position + 4], 0, position) if position + 4 <= len(data) else -1
        if found < 0:
            position += 1
            continue
        flush(position)
        length, offset = 4, position - found
        # A copy may run into what it makes.
        while length < 60 and position + length < len(data) and data[found + length] == data[position + length]:
            length += 1
        if length < 12 and offset < 2048:
            out.extend(bytes([1 | length - 4 << 2 | offset >> 8 << 5, offset & 255]))
        elif offset < 1 << 16:
            out.extend(bytes([2 | length - 1 << 2]) + struct.pack("<H", offset))
        else:
            out.extend(bytes([3 | length - 1 << 2]) + struct.pack("<I", offset))
        position += length
        literal = position
    flush(len(data))
    return bytes(out)


def block(entries: list[tuple[bytes, bytes]], interval: int = 16) -> bytes:
    out, restarts, last = bytearray(), [], b""
    for n, (key, value) in enumerate(entries):
        shared = 0
        if n % interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return bytes(out) + b"".join(struct.pack("<I", n) for n in [*restarts, len(restarts)])


def write_table(path: Path, entries: list[tuple[bytes, bytes]], *, compress: bool = False, per_block: int = 20) -> None:
    out = bytearray()

    def add(content: bytes, kind: int = 0) -> bytes:
        handle = varint(len(out)) + varint(len(content))
        content += bytes([kind])
        out.extend(content + struct.pack("<I", masked(content)))
        return handle

    index = []
    for start in range(0, len(entries), per_block):
        part = entries[start : start + per_block]
        content = block(part)
        index.append((part[-1][0], add(snappy(content), 1) if compress else add(content)))
    footer = add(block([])) + add(block(index, 1))
    path.write_bytes(bytes(out) + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))


def write_bundle(
    prefix: Path,
    variables: Mapping[str, Any],
    *,
    shards: int = 1,
    compress: bool = False,
    header: bytes | None = None,
    change: Mapping[str, bytes] | None = None,
) -> Path:
    """Arrays by name, or bytes for a variable of strings; `change` replaces entries. Returns the path of the index."""
    data = [bytearray() for _ in range(shards)]
    entries = [(b"", field(1, shards) + field(3, field(1, 1)) if header is None else header)]
    for n, (name, value) in enumerate(sorted(variables.items())):
        shard = n % shards
        strings = isinstance(value, bytes)
        raw = value if strings else np.ascontiguousarray(value).tobytes()
        kind = 7 if strings else TYPES[value.dtype.name]
        dims = b"".join(field(2, field(1, length)) for length in (() if strings else value.shape))
        entry = field(1, kind) + field(2, dims)
        entry += field(3, shard) if shard else b""
        entry += (field(4, len(data[shard])) if data[shard] else b"") + field(5, len(raw)) + fixed32(6, masked(raw))
        entries.append((name.encode(), (change or {}).get(name, entry)))
        data[shard] += raw
    for n, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{n:05d}-of-{shards:05d}").write_bytes(content)
    index = prefix.with_name(f"{prefix.name}.index")
    write_table(index, entries, compress=compress)
    return index
