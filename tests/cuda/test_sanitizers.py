"""The CUDA kernels on the host under AddressSanitizer, UBSan and ThreadSanitizer.

The ops run once through the "host" backend, every launch of theirs is recorded with the memory that it works on, and a
program of its own runs it again under a sanitizer, each buffer in exactly as much memory as it needs.
"""

import contextlib
import ctypes
import inspect
import os
import re
import struct
import subprocess

import pytest
import torch
from cases import KERNEL_CASES, gradients
from host_build import build
from scenes import scene

from mdepth_fast import _native
from mdepth_fast.kernels import nvrtc
from mdepth_fast.ops import flow_warp, inverse_warp, min_reprojection, nnconv5

ASAN = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
TSAN = ("-O1", "-g1", "-fsanitize=thread")
BARRIERS = 28


class _Recording:
    """Launches, and what every address in their parameters points to."""

    def __init__(self, run):
        self.run, self.sizes, self.calls = run, {}, []

    def data_ptr(self, original):
        def listening(tensor):
            address = original(tensor)
            self.sizes[address] = tensor.numel() * tensor.element_size()
            return address

        return listening

    def launch(self, op, launches, params, device):
        buffers = []
        atomics = any(re.match("(inverse|flow)_warp_scatter_f", kernel) for kernel, *_ in launches)
        for name, offset, kind, count in _native.module().ops[op].params[1]:
            for at in range(offset, offset + 8 * count, 8) if kind == "P" else ():
                (address,) = struct.unpack_from("Q", params, at)
                if address:
                    content = ctypes.string_at(address, self.sizes[address])
                    buffers.append((content, at, name != "workspace" and not atomics))
        self.calls.append((op, params, buffers, launches))
        self.run(op, launches, params, device)

    def write(self, path):
        def number(value):
            return struct.pack("q", value)

        def text(value):
            value = value.encode() if isinstance(value, str) else value
            return number(len(value)) + value

        parts = [number(len(self.calls))]
        for op, params, buffers, launches in self.calls:
            parts += [text(op), text(params), number(len(buffers))]
            parts += [
                part for content, at, compared in buffers for part in (text(content), number(at), number(compared))
            ]
            parts.append(number(len(launches)))
            parts += [part for name, *sizes in launches for part in (text(name), *map(number, sizes))]
        path.write_bytes(b"".join(parts))


def _call_everything(dtype, height, width, padding):
    for case in KERNEL_CASES:
        gradients(case, "host", case.inputs(batch=1, height=height, width=width, dtype=dtype))
    # One source more than a block keeps; noise.
    target, sources, depths, K, T, _ = scene(2, height, width, 3, 2, dtype, motion=0.2)
    leaves = [depth.clone().requires_grad_() for depth in depths]
    noise = 0.1 * torch.rand(2, 3, height, width, dtype=dtype)
    min_reprojection(target, sources, leaves, K, T, identity_noise=noise, padding=padding, backend="host")
    for ordered in (False, True):
        torch.use_deterministic_algorithms(ordered)
        try:
            wanted = [one.clone().requires_grad_() for one in (sources[:, 0], depths[0], T[:, 0])]
            inverse_warp(wanted[0], wanted[1], K, wanted[2], padding=padding, backend="host")[0].sum().backward()
            wanted = [one.requires_grad_() for one in (sources[:, 0].clone(), depths[0].expand(-1, 2, -1, -1).clone())]
            flow_warp(*wanted, padding=padding, backend="host")[0].sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)


def _call_nnconv5(dtype):
    """Two chunks of input channels, half of the threads without an output one; input channels in parts."""
    case = next(case for case in KERNEL_CASES if case.name == "nnconv5")
    for height, width, channels, out_channels in ((17, 35, 35, 11), (7, 9, 70, 35)):
        inputs = case.inputs(2, height, width, dtype, channels=channels, out_channels=out_channels)
        nnconv5(**inputs, backend="host")
        if dtype == torch.float64:
            continue
        with pytest.MonkeyPatch.context() as patch, _tf32():
            patch.setattr(inspect.getmodule(nnconv5), "_has_tensor_cores", lambda device: True)
            for stored in (torch.float32, torch.float16, torch.bfloat16):
                halved = {n: v.to(stored) if n in ("x", "pw_weight", "skip") else v for n, v in inputs.items()}
                torch.ops.mdepth.nnconv5(*halved.values(), backend="host")


@contextlib.contextmanager
def _tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return {"folder": tmp_path_factory.mktemp("recordings")}


@pytest.fixture
def recorded(recordings, host, monkeypatch):
    """The file of the launches: all of them, or those of float32 at one size."""

    def make(name):
        path = recordings["folder"] / name
        if path.exists():
            return path
        recording = _Recording(nvrtc.launch)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "data_ptr", recording.data_ptr(torch.Tensor.data_ptr))
            patch.setattr(nvrtc, "launch", recording.launch)
            # A block's threads race, whatever there is beside it.
            _call_everything(torch.float32, *((17, 35) if name == "all" else (9, 33)), "border")
            _call_nnconv5(torch.float32)
            if name == "all":
                _call_everything(torch.float32, 2, 3, "zeros")
                _call_everything(torch.float64, 17, 35, "zeros")
                _call_nnconv5(torch.float64)
        recording.write(path)
        return path

    return make


def run(flags, *arguments):
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    command = [build("replay.cpp", *flags), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_no_access_outside_a_buffer_and_no_dependence_on_the_order_of_blocks(recorded):
    done = run(ASAN, recorded("all"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_access_outside_a_buffer_is_seen(recorded, tmp_path):
    """The program reads what was recorded: a buffer one element shorter is one too short."""
    recording = _Recording(nvrtc.launch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "data_ptr", recording.data_ptr(torch.Tensor.data_ptr))
        patch.setattr(nvrtc, "launch", recording.launch)
        case = next(case for case in KERNEL_CASES if case.name == "photometric_loss")
        case.call("host", **case.inputs(batch=1, height=5, width=6))
    ((op, params, buffers, launches),) = recording.calls
    (content, *where), *others = buffers
    recording.calls = [(op, params, [(content[:-4], *where), *others], launches)]
    recording.write(tmp_path / "short")
    done = run(ASAN, tmp_path / "short")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr


def test_no_data_race(recorded):
    done = run(TSAN, recorded("float"), -1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(rf"{BARRIERS} barriers\n", done.stdout)


@pytest.mark.parametrize("barrier", range(BARRIERS))
def test_a_missing_barrier_is_a_data_race(barrier, recorded):
    done = run(TSAN, recorded("float"), barrier)
    assert done.returncode == 66 and "data race" in done.stderr
