"""A method of a network that another runtime computes, from a file of ONNX that is written once for each size."""

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from mdepth_fast import __version__
from mdepth_fast.engines.onnx_file import LARGEST, capture, random_images, relative_difference, write_onnx
from mdepth_fast.engines.runtimes import Session, open_session, versions
from mdepth_fast.files import cache_folder, replacing

__all__ = ["BFLOAT16_TOLERANCE", "TOLERANCE", "Autocast", "Engine"]

TOLERANCE = 1e-4  # float32: of the largest relative difference from PyTorch
BFLOAT16_TOLERANCE = 0.05  # bfloat16, which has two to three digits: of the mean one
_OPSET = 18
_OPEN = 4  # sessions that an engine keeps, each with the weights
_KEPT = 8 * 2**30  # bytes of files in the cache folder; beyond, those go that were not used for longest


class Autocast:
    """A method of a network under PyTorch's autocast to bfloat16, its outputs in float32."""

    def __init__(self, net: nn.Module, method: str) -> None:
        self.net, self.method = net, method

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            outputs = getattr(type(self.net), self.method)(self.net, *inputs)
        leaves, spec = tree_flatten(outputs)
        return tree_unflatten([leaf.float() if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


class Engine:
    """`net.<method>` computed by another runtime: a function of float32 tensors on the CPU, without gradients.

    For each height and width there is one file, in the cache folder (`files.cache_folder`), found by weights, options,
    size and versions. A session is opened for each shape of input and number of threads, and compared with PyTorch on
    random images before it is used.

    ValueError where the network cannot be written or the runtime cannot take it, or gives something else.
    """

    def __init__(self, net: nn.Module, method: str, engine: str, dtype: str) -> None:
        self.net, self.method, self.engine, self.dtype = net, method, engine, dtype
        created: Any = getattr(net, "created_as", None)
        self.name: str = created[0] if created else type(net).__name__
        self.fingerprint = _fingerprint(net, method)
        self._reset()

    def _reset(self) -> None:
        self._sessions: OrderedDict[Any, tuple[Session, TreeSpec]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_sessions", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def __call__(self, *inputs: Tensor) -> Any:
        for value in inputs:
            if type(value) not in (Tensor, nn.Parameter):
                got = type(value).__name__
                raise ValueError(f"{self.engine}: expected tensors, got {got}; trace or export the network itself")
            if value.dtype != torch.float32 or value.device.type != "cpu":
                got = f"{value.dtype} on {value.device}"
                raise ValueError(f"{self.engine}: expected images in float32 on the CPU, got {got}")
            if value.requires_grad and torch.is_grad_enabled():
                raise ValueError(f"{self.engine}: expected images without gradient, it computes none")
        if not inputs[0].numel():
            return self._eager(inputs)
        with self._lock:
            session, spec = self._session(tuple(tuple(value.shape) for value in inputs))
            return tree_unflatten(session([value.detach().contiguous() for value in inputs]), spec)

    def _eager(self, inputs: Sequence[Tensor]) -> Any:
        with torch.no_grad():
            return getattr(type(self.net), self.method)(self.net, *inputs)

    def _session(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[Session, TreeSpec]:
        key = (shapes, torch.get_num_threads())
        if key not in self._sessions:
            inputs = _random(shapes)
            want, spec = tree_flatten(self._eager(inputs))
            path = self._file(shapes)
            written = not path.exists()
            if written:
                self._write(path, inputs)
            session, problem = self._opened(path, shapes, inputs, want)
            if problem and not written:  # a file of other code, or a damaged one
                self._write(path, inputs)
                session, problem = self._opened(path, shapes, inputs, want)
            if problem:
                with suppress(OSError):
                    path.unlink()
                raise ValueError(f"engine: {self.engine} {problem}; take native or torch for {self.name}")
            assert session is not None
            self._sessions[key] = session, spec
            while len(self._sessions) > _OPEN:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        return self._sessions[key]

    def _opened(
        self, path: Path, shapes: Sequence[Sequence[int]], inputs: Sequence[Tensor], want: list[Tensor]
    ) -> tuple[Session | None, str | None]:
        """A session, and what is wrong with it."""
        try:
            session = open_session(self.engine, path, shapes, self.dtype)
            got = session(inputs)
        except Exception as error:  # of a runtime, each has its own
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return None, f"cannot take {self.name}: {lines[0]}"
        with suppress(OSError):  # a cache that others fill, or a file that another process has removed
            os.utime(path)  # used now
        if [value.shape for value in got] != [value.shape for value in want]:
            shapes_got, shapes_want = ([tuple(value.shape) for value in values] for values in (got, want))
            return session, f"gives shapes {shapes_got} for {self.name}, PyTorch {shapes_want}"
        for mine, theirs in zip(want, got):
            mine, theirs = (value.double().flatten(1) for value in (mine, theirs))
            difference = relative_difference(theirs, mine, mine)
            if self.dtype == "float32":
                most, limit = difference.amax().item(), TOLERANCE
            else:
                most, limit = difference.mean().item(), BFLOAT16_TOLERANCE
            if not most <= limit:
                return session, f"differs from PyTorch by {most:.2g} in {self.dtype}, more than {limit:g}"
        return session, None

    def _file(self, shapes: Sequence[Sequence[int]]) -> Path:
        facts = (self.fingerprint, [shape[1:] for shape in shapes], __version__, torch.__version__, _OPSET)
        digest = hashlib.sha256(repr((*facts, sorted(versions(("onnx", "onnxscript")).items()))).encode())
        height, width = shapes[0][-2:]
        name = re.sub(r"[^\w.-]+", "_", self.name)
        return cache_folder() / "engines" / f"{name}-{height}x{width}-{digest.hexdigest()[:20]}.onnx"

    def _write(self, path: Path, inputs: Sequence[Tensor]) -> None:
        if (size := sum(value.nbytes for value in self.net.state_dict().values())) > LARGEST:
            held = f"{size / 2**30:.1f} GiB"
            raise ValueError(f"engine: a file of ONNX holds 2 GiB, the weights of {self.name} are {held}; take native")
        with torch.inference_mode(False):
            example = tuple(torch.cat([value[:1], value[:1]]) for value in inputs)
        shapes = [{0: "batch"} for _ in inputs]
        names = ["first", "second"][: len(inputs)]
        try:
            with torch.inference_mode(False), torch.no_grad():
                graph = capture(_Part(self.net, self.method), example, shapes)
                with replacing(path) as temporary:
                    write_onnx(graph, temporary, inputs=names, outputs=None, shapes=shapes, metadata={}, opset=_OPSET)
        except OSError as error:
            raise OSError(f"{path}: cannot be written: {error.strerror}; MDEPTH_CACHE names another folder") from error
        except Exception as error:  # of the exporter
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"engine: {self.engine} cannot take {self.name}: {lines[0]}; take native") from error
        _prune(path)


class _Part(nn.Module):
    """A method as a module."""

    def __init__(self, net: nn.Module, method: str) -> None:
        super().__init__()
        self.net, self.method = net, method

    def forward(self, first: Tensor, second: Tensor | None = None) -> Any:
        inputs = (first,) if second is None else (first, second)
        return getattr(type(self.net), self.method)(self.net, *inputs)


def _random(shapes: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Images (..., 3, H, W), or features of other channels."""
    draw, found = torch.Generator().manual_seed(0), []
    for shape in shapes:
        if shape[-3] == 3:
            count = 1
            for length in shape[:-3]:
                count *= length
            found.append(random_images(count, shape[-2], shape[-1], draw).reshape(shape))
        else:
            found.append(torch.rand(shape, generator=draw))
    return tuple(found)


def _fingerprint(net: nn.Module, method: str) -> str:
    """Tells networks apart that compute something else: their modules, the plain settings of these, the weights."""
    digest = hashlib.sha256(method.encode())
    for name, module in net.named_modules():
        settings = sorted((key, value) for key, value in vars(module).items() if key != "training" and _plain(value))
        digest.update(repr((name, type(module).__module__, type(module).__qualname__, settings)).encode())
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        value = value.detach().cpu().contiguous()
        digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _prune(newest: Path) -> None:
    """Removes what was not used for longest where the files are too many; never the newest."""
    total = 0
    for _, path in sorted(_used(newest.parent), reverse=True):
        total += path.stat().st_size if path.exists() else 0
        if total > _KEPT and path != newest:
            path.unlink(missing_ok=True)


def _used(folder: Path) -> Iterator[tuple[float, Path]]:
    for path in folder.glob("[!.]*.onnx"):
        try:
            yield path.stat().st_mtime, path
        except FileNotFoundError:  # another process has removed it
            continue
