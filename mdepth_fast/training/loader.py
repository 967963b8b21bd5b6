"""Batches whose order and position are a function of (seed, epoch, batch), so that a resumed run goes on exactly."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mdepth_fast.systems import system_of
from mdepth_fast.training.interruption import keep_working

__all__ = ["BatchSampler", "TrainLoader", "build_loader", "evaluation_loader"]


class BatchSampler(Sampler[list[int]]):
    """Shuffled index batches of one process; all processes together see `batch_size` samples a step.

    The order depends on `seed` and the epoch alone, not on the number of processes: each takes its own consecutive
    part of every global batch. The last partial batch is dropped (Monodepth2 does so, arXiv 1806.01260).

    Args:
        length: samples in the data set.
        batch_size: samples per step over all processes; a multiple of `world_size`.
        repeat: times that every sample is shown per epoch, so that a tiny data set has epochs of a useful length.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int = 0, repeat: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size: expected a positive multiple of the number of processes {world_size}, got {batch_size}"
            )
        if length * repeat < batch_size:
            raise ValueError(
                f"batch_size: expected at most the {length * repeat} samples of an epoch ({length} in the data set, "
                f"repeat {repeat}), got {batch_size}"
            )
        self.length, self.batch_size, self.seed, self.repeat = length, batch_size, seed, repeat
        self.rank, self.share = rank, batch_size // world_size
        self.done = 0  # batches of all epochs that have been handed out: where iteration starts

    def __len__(self) -> int:
        return self.length * self.repeat // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """The rest of the epoch that `done` lies in."""
        epoch, start = divmod(self.done, len(self))
        generator = torch.Generator().manual_seed((self.seed << 24) + epoch)
        order = torch.cat([torch.randperm(self.length, generator=generator) for _ in range(self.repeat)]).tolist()
        for batch in range(start, len(self)):
            first = batch * self.batch_size + self.rank * self.share
            yield order[first : first + self.share]


class TrainLoader(DataLoader[Any]):
    """A `DataLoader` over a `BatchSampler` that Lightning can save and restore in the middle of an epoch.

    Every iteration goes on where the one before ended, an epoch boundary or not.
    """

    def __init__(self, dataset: Dataset[Any], sampler: BatchSampler, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=sampler, **options)
        self.steps = sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            # Counted when handed out: loader workers have taken the indices of later batches already.
            self.steps.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.steps.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps.done = state["batches"]


def build_loader(
    config: Any, dataset: Any, *, rank: int = 0, world_size: int = 1, pin_memory: bool = False
) -> TrainLoader:
    """The training loader of one process of a run."""
    data = config.data
    sampler = BatchSampler(
        len(dataset), data.batch_size, seed=config.seed, repeat=data.repeat, rank=rank, world_size=world_size
    )
    return TrainLoader(
        dataset,
        sampler,
        num_workers=data.workers,
        persistent_workers=data.workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=keep_working,
        collate_fn=system_of(config).collate,
    )


class _Share(Dataset[Any]):
    """Every `world_size`-th sample, from `rank` on; where others have one more, nothing: an empty dictionary.

    So every process takes as many steps as the others, which distributed forward passes need, and no sample comes
    twice.
    """

    def __init__(self, dataset: Any, rank: int, world_size: int) -> None:
        self.dataset, self.rank, self.world_size = dataset, rank, world_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.world_size)

    def __getitem__(self, index: int) -> Any:
        position = index * self.world_size + self.rank
        return self.dataset[position] if position < len(self.dataset) else {}


def evaluation_loader(config: Any, dataset: Any, *, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
    """One process's share of the evaluation data, a sample a batch; empty batches are to be passed over."""
    share = _Share(dataset, rank, world_size)
    return DataLoader(share, num_workers=config.data.workers, worker_init_fn=keep_working)
