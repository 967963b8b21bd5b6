"""Data sets in WebDataset shards: tar files of samples, which are read without unpacking.

A sample is the members of one key, in this order: `key.json`, `key.png` (the target), `key.<field>.png` for further
images, `key.<field>.npy` for other arrays. What is stored is what the data set yields, bit by bit. `index.json` beside
the shards says how many samples each holds, and what they are.
"""

import functools
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from mdepth_fast.data.samples import Crop, DataError, DepthDataset, SourceName, open_image
from mdepth_fast.files import replacing

__all__ = ["SHARD_SUFFIX", "ShardedDepth", "ShardedViews", "Shards", "ends_early", "members", "pack"]

SHARD_SUFFIX = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)

_INDEX, _FORMAT = "index.json", 1
_SCALES = (256.0, 1000.0)  # of 16-bit depth: KITTI's, and millimetres
_OPEN = 64  # shards whose table a process keeps


def members(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an open tar file in order, forgotten as they pass: a million takes no more memory than a few."""
    while (member := shard.next()) is not None:
        shard.members.clear()  # type: ignore[attr-defined]
        yield member


def ends_early(path: Path) -> bool:
    """Whether a tar file lacks the zeros at its end; tarfile takes it for complete. Compressed ones have checksums."""
    with path.open("rb") as file:
        if file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7"):
            return False
        file.seek(-512, io.SEEK_END)
        return any(file.read())


def pack(
    dataset: Any,
    folder: str | Path,
    *,
    shard_size: int = 500,
    workers: int = 0,
    skip_bad: bool = False,
    rank: int = 0,
    world_size: int = 1,
    advance: Callable[[int], Any] = lambda count: None,
) -> int:
    """Writes the samples of a data set as shards, and returns how many this process could not read.

    Shards appear whole. A run that was killed goes on: shards that are there are passed over. Processes take every
    `world_size`-th shard; whichever is last writes the index, without which the folder cannot be read.

    Args:
        dataset: of dictionaries of tensors and names, such as `Sample` or `DepthSample`; must not be random
        folder: new, empty, or of an earlier run over the same data
        shard_size: samples per shard
        workers: processes that decode
        skip_bad: leave out samples that cannot be read; otherwise `DataError`
        advance: called with the number of samples that have been dealt with

    ValueError for a folder of other data.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size: expected a positive number, got {shard_size}")
    folder, length = Path(folder), len(dataset)
    if not length:
        raise ValueError("dataset: expected samples, got none")
    about = {
        "format": _FORMAT,
        "dataset": type(dataset).__name__,
        "length": length,
        "shard_size": shard_size,
        "sources": list(getattr(dataset, "sources", ())),
        "settings": getattr(dataset, "settings", {}),
        "first": dataset[0]["name"] if not skip_bad else None,
    }
    about = json.loads(json.dumps(about))
    record = folder / ".packing.json"
    if record.is_file():
        stored = json.loads(record.read_text())
        if different := [key for key in about if stored.get(key) != about[key]]:
            old, new = ({key: values.get(key) for key in different} for values in (stored, about))
            raise ValueError(f"folder: {folder} holds shards of other data: {old} there, {new} here")
    elif folder.exists() and any(folder.glob("*.tar")):
        raise ValueError(f"folder: expected a new or empty folder or an unfinished one, got {folder}")
    else:
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n")
    count = -(-length // shard_size)
    paths = [folder / f"{number:06d}.tar" for number in range(count)]
    broken = 0
    for number in range(rank, count, world_size):
        chosen = range(number * shard_size, min((number + 1) * shard_size, length))
        if not paths[number].is_file():
            broken += _write_shard(dataset, paths[number], chosen, workers, skip_bad)
        advance(len(chosen))
    if all(path.is_file() for path in paths):
        shards = [{"file": path.name, "samples": len(_table(path)), "bytes": path.stat().st_size} for path in paths]
        with replacing(folder / _INDEX) as temporary:
            temporary.write_text(json.dumps({**about, "shards": [s for s in shards if s["samples"]]}, indent=1) + "\n")
    return broken


class _Readable(Dataset[Any]):
    """Samples, or the `DataError` of those that cannot be read, which a loader's process must hand over."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except DataError as error:
            return error


def _write_shard(dataset: Any, path: Path, chosen: Sequence[int], workers: int, skip_bad: bool) -> int:
    broken = 0
    loader: Iterable[Any] = DataLoader(
        Subset(_Readable(dataset), chosen), batch_size=None, num_workers=workers, collate_fn=_as_it_is
    )
    with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as shard:
        for index, sample in zip(chosen, loader):
            if isinstance(sample, DataError):
                if not skip_bad:
                    raise sample
                broken += 1
                continue
            for suffix, content in _encoded(sample):
                member = tarfile.TarInfo(f"{index:09d}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return broken


def _as_it_is(sample: Any) -> Any:
    return sample


def _encoded(sample: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The members of a sample: suffix and content."""
    plain: dict[str, Any] = {}
    files: list[tuple[str, bytes]] = []
    for field, value in sample.items():
        if not isinstance(value, Tensor):
            plain[field] = value
        elif value.dtype == torch.uint8 and value.dim() in (3, 4) and value.shape[-3] == 3:
            images = value[None] if value.dim() == 3 else value
            names = [field] if value.dim() == 3 else [f"{field}{number}" for number in range(len(value))]
            plain[field] = {"images": names if value.dim() == 4 else field, "shape": list(value.shape)}
            for name, image in zip(names, images):
                files.append(("png" if name == "target" else f"{name}.png", _png(image.permute(1, 2, 0).numpy())))
        elif value.dtype == torch.float32 and value.dim() == 3 and (scale := _exact_scale(value)):
            plain[field] = {"depth": field, "scale": scale}
            files.append((f"{field}.png", _png((value[0] * scale).round().to(torch.int32).numpy().astype(np.uint16))))
        elif value.numel() > 256:
            plain[field] = {"array": field}
            stream = io.BytesIO()
            np.save(stream, value.numpy())
            files.append((f"{field}.npy", stream.getvalue()))
        else:
            plain[field] = {
                "values": value.tolist(),
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": list(value.shape),
            }
    yield "json", json.dumps(plain).encode()
    yield from files


def _exact_scale(depth: Tensor) -> float:
    """The scale at which 16-bit PNG holds metres (1, h, w) to the last bit, 0 if there is none."""
    if depth.shape[0] != 1 or not depth.isfinite().all() or depth.numel() == 0 or depth.min() < 0:
        return 0.0
    for scale in _SCALES:
        units = (depth * scale).round()
        if units.max() <= 65535 and torch.equal(units / scale, depth):
            return scale
    return 0.0


def _png(pixels: NDArray[Any]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=3)
    return stream.getvalue()


class Shards(Dataset[dict[str, Any]]):
    """The samples in a folder that `pack` or `mdepth-fast data pack` wrote, in the order of the original data set.

    Samples are read by their position in the tar file, so any process may read any of them, and a run on shards sees
    exactly what a run on the original data sees, whatever the number of processes. `blocks` are the sizes of the
    shards: the training loader shuffles shards, and samples within a few of them, so that files are read nearly from
    front to back.

    sources: of the original data set. names, settings: identify the content, as in `DepthDataset`.

    FileNotFoundError or `DataError` for a folder without an index, a missing shard, or one of another length.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = self.folder / _INDEX
        if not index.is_file():
            raise FileNotFoundError(
                f"{self.folder}: expected a folder of `mdepth-fast data pack`, got none with {_INDEX}; an unfinished "
                "one is finished by the same command"
            )
        try:
            about = json.loads(index.read_text())
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']}, this version reads {_FORMAT}")
            self._paths = [self.folder / shard["file"] for shard in about["shards"]]
            self.blocks = [int(shard["samples"]) for shard in about["shards"]]
            sizes = [int(shard["bytes"]) for shard in about["shards"]]
            self.sources: tuple[SourceName, ...] = tuple(about["sources"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{index}: cannot be read as an index of shards ({error})") from error
        for path, size in zip(self._paths, sizes):
            got = path.stat().st_size if path.is_file() else None
            if got != size:
                raise DataError(f"{path}: expected a shard of {size} bytes, got {'none' if got is None else got}")
        self._ends = np.cumsum(self.blocks)
        self.names = [f"{path.stem}/{n}" for path, count in zip(self._paths, self.blocks) for n in range(count)]
        self.settings = {"shards": str(about["dataset"]), "bytes": sum(sizes), "packed": about["settings"]}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0..{len(self) - 1}, got {index}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        path, number = self._paths[shard], index - int(self._ends[shard]) + self.blocks[shard]
        table = _table(path)
        if number >= len(table):
            raise DataError(f"{path}: expected {self.blocks[shard]} samples, got {len(table)}: the file is damaged")
        key, places = table[number]
        return _decoded(path, key, places)


@functools.lru_cache(maxsize=_OPEN)
def _table(path: Path) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """The samples of a shard: key, and place and length of each member by suffix. What follows damage is left out."""
    table: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in members(shard):
                key, _, suffix = member.name.partition(".")
                if member.isfile():
                    table.setdefault(key, {})[suffix] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError, OSError):
        pass  # whoever asks for a sample that is not there hears of it
    return list(table.items())


def _decoded(path: Path, key: str, places: dict[str, tuple[int, int]]) -> dict[str, Any]:
    where = f"{path}: {key}"
    sample: dict[str, Any] = {}
    try:
        with path.open("rb") as file:

            def content(suffix: str) -> io.BytesIO:
                start, size = places[suffix]
                file.seek(start)
                return io.BytesIO(file.read(size))

            for field, value in json.load(content("json")).items():
                if not isinstance(value, dict):
                    sample[field] = value
                elif "values" in value:
                    made = torch.tensor(value["values"], dtype=getattr(torch, value["dtype"]))
                    sample[field] = made.reshape(value["shape"])
                elif "array" in value:
                    sample[field] = torch.from_numpy(np.load(content(f"{field}.npy"), allow_pickle=False))
                elif "depth" in value:
                    units = _pixels(content(f"{field}.png"), where).astype(np.float32)
                    sample[field] = torch.from_numpy(units)[None] / value["scale"]
                else:
                    names = value["images"] if isinstance(value["images"], list) else [value["images"]]
                    images = [_pixels(content("png" if n == "target" else f"{n}.png"), where) for n in names]
                    stack = np.stack(images) if images else np.empty((0, *value["shape"][2:], 3), np.uint8)
                    tensor = torch.from_numpy(np.ascontiguousarray(stack.transpose(0, 3, 1, 2)))
                    sample[field] = tensor.reshape(value["shape"])
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{where}: expected a member {error.args[0]}, got none") from error
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, EOFError) as error:
        raise DataError(f"{where}: cannot be read as a sample ({error})") from error
    return sample


def _pixels(stream: io.BytesIO, where: str) -> NDArray[Any]:
    with open_image(stream, where) as image:
        return np.array(image)


class ShardedViews(Shards):
    """`Sample`s in shards, at the size of the network's input that they were packed for.

    Args:
        folder: see `Shards`
        height, width: size of the network's input
        sources: some of those that are packed; empty: all

    ValueError for another size or other sources than are packed.
    """

    def __init__(
        self,
        folder: str | Path,
        height: int,
        width: int,
        *,
        sources: Sequence[SourceName] = (),
        evaluation: bool = False,
    ) -> None:
        super().__init__(folder)
        packed = self.sources
        if missing := [source for source in sources if source not in packed]:
            raise ValueError(f"data.sources: expected some of {list(packed)}, which are packed, got {missing[0]!r}")
        self._chosen = [packed.index(source) for source in sources or packed]
        self.sources = tuple(sources) or packed
        self._size, self._evaluation = (height, width), evaluation
        if len(self):
            self[0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        needed = {"target", "sources", "K", "source_K", "T", *(("depth", "image") if self._evaluation else ())}
        if missing := sorted(needed - sample.keys()):
            raise DataError(f"{self.folder}: expected samples with views, got some without {missing[0]}")
        if (got := tuple(sample["target"].shape[1:])) != self._size:
            raise ValueError(
                f"data.height, data.width: expected the size that is packed, {got[0]}x{got[1]}, got "
                f"{self._size[0]}x{self._size[1]}"
            )
        return {**sample, **{key: sample[key][self._chosen] for key in ("sources", "source_K", "T")}}


class ShardedDepth(DepthDataset):
    """`DepthSample`s in shards; see `Shards` for the folder, `DepthDataset` for `crop`, which may be packed already.

    ValueError for another crop than was packed.
    """

    def __init__(self, folder: str | Path, *, crop: Crop = None) -> None:
        self.shards = Shards(folder)
        self.blocks = self.shards.blocks
        packed = self.shards.settings["packed"].get("crop")
        if crop is not None and packed is not None:
            if (list(crop) if crop != "kb" else crop) != packed:
                raise ValueError(f"data.crop: expected {packed}, which is packed, or null, got {crop}")
            crop = None
        super().__init__(self.shards.names, crop=crop, **self.shards.settings)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        sample = self.shards[index]
        if missing := sorted({"target", "depth"} - sample.keys()):
            raise DataError(f"{self.where(index)}: expected an image with depth, got a sample without {missing[0]}")
        return sample["target"].permute(1, 2, 0).numpy(), sample["depth"][0].numpy()

    def where(self, index: int) -> str:
        return f"{self.shards.folder}/{self.names[index]}"
