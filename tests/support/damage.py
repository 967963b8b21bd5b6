"""Files of weights with one bit changed, or cut off: what reading makes of them.

    python tests/support/damage.py [COUNT]     a table, COUNT damaged files of each format (500)

An error has to name the file, or the weights have to be those that were written; a crash of the interpreter ends the
run. Pickles outside of a zip archive have no checksum, so there alone other weights are possible.
"""

import pickle
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdepth_fast.systems.saved import read_checkpoint
from mdepth_fast.weights import read_content, write_converted

Reader = Callable[[Path], dict[str, Any]]


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """A small state dict with a counter and half precision; larger than a block of the checksum."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "encoder.conv1.weight": torch.randn(16, 8, 5, 5, generator=generator),
        "encoder.bn1.bias": torch.randn(7, generator=generator),
        "encoder.bn1.num_batches_tracked": torch.tensor(12),
        "decoder.weight": torch.randn(9, 11, generator=generator).half(),
    }


def _checkpoint(path: Path) -> None:
    state = tensors()
    optimizer = {"state": {0: {"exp_avg": tensors(1)["encoder.conv1.weight"]}}, "param_groups": [{"lr": 1e-4}]}
    saved = {"config": {"system": "monodepth2", "seed": 0}}
    torch.save({"state_dict": state, "optimizer_states": [optimizer], "mdepth_fast": saved, "epoch": 3}, path)


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({key: value.numpy() for key, value in tensors().items()}, 2))


FORMATS: dict[str, tuple[Callable[[Path], Any], Reader]] = {
    "last.ckpt": (_checkpoint, read_checkpoint),
    "iteration_1.pt": (lambda path: torch.save(tensors(), path), read_content),
    "net.safetensors": (lambda path: write_converted(path, "posecnn", {"frames": 2}, tensors(), "x.pth"), read_content),
    "net.npz": (lambda path: np.savez(path, **{k: v.numpy() for k, v in tensors().items()}), read_content),
    "legacy.pth": (lambda p: torch.save(tensors(), p, _use_new_zipfile_serialization=False), read_content),
    "net.pk": (_pickled, read_content),
}
WITHOUT_CHECKSUM = ("legacy.pth", "net.pk")


def damaged(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    """A bit flipped anywhere, a bit flipped in the 2 KiB at either end, where the headers are, or an end cut off."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        if number % 5 == 4:
            yield whole[: generator.integers(len(whole))]
            continue
        place = int(generator.integers(len(whole)))
        if number % 2:
            near = min(2048, len(whole) // 2)
            place = (int(generator.integers(-near, near))) % len(whole)
        changed = bytearray(whole)
        changed[place] ^= 1 << int(generator.integers(8))
        yield bytes(changed)


def outcomes(folder: Path, name: str, count: int, seed: int = 0) -> Counter[str]:
    """How many of the damaged files end in "error", as the "same" weights, as "other" ones, or in an error that is
    none: the name of its type."""
    write, read = FORMATS[name]
    write(folder / name)
    want = _leaves(read(folder / name))
    found: Counter[str] = Counter()
    for content in damaged((folder / name).read_bytes(), count, seed):
        (folder / name).write_bytes(content)
        try:
            got = _leaves(read(folder / name))
        except ValueError as error:
            message = str(error)
            found["error" if message.startswith(str(folder / name)) and "\n" not in message else message] += 1
        except Exception as error:
            found[type(error).__name__] += 1
        else:
            found["same" if got == want else "other"] += 1
    return found


def _leaves(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: _leaves(entry) for key, entry in value.items()}
    return [_leaves(entry) for entry in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name:16}", dict(outcomes(Path(folder), name, count)), flush=True)
