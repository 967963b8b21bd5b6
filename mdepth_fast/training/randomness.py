"""The global random numbers of torch, for as long as a step lasts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators of the CPU and of the device start at `seed`; behind, they are as before.

    Layers such as dropout draw from them. Others' generators, NumPy's and Python's are not touched.
    """
    backend = None if device.type == "cpu" else getattr(torch, device.type)
    # torch.mps has one device, and takes no argument that says which.
    where = () if backend is None or device.type == "mps" else (device,)
    before = torch.get_rng_state()
    on_device = None if backend is None else backend.get_rng_state(*where)
    try:
        torch.default_generator.manual_seed(seed)
        if backend is not None:
            backend.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(before)
        if backend is not None:
            backend.set_rng_state(on_device, *where)
