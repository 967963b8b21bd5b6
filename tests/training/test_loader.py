"""Batches of one process and of several, in the middle of an epoch, and shares of evaluation data."""

import pytest
from tiny_run import tiny_config

from mdepth_fast.training.loader import BatchSampler, TrainLoader, evaluation_loader


class TestBatches:
    def test_an_epoch_shows_every_sample_as_often_as_told(self) -> None:
        batches = list(BatchSampler(6, 4, repeat=2))
        assert [len(batch) for batch in batches] == [4, 4, 4]
        assert sorted(index for batch in batches for index in batch) == sorted([*range(6), *range(6)])

    def test_processes_share_out_the_batches_of_one(self) -> None:
        whole = list(BatchSampler(8, 4, seed=3))
        parts = [list(BatchSampler(8, 4, seed=3, rank=rank, world_size=2)) for rank in range(2)]
        assert whole == [first + second for first, second in zip(*parts, strict=True)]

    def test_a_restored_loader_hands_out_the_rest(self) -> None:
        def batches(loader: TrainLoader, count: int) -> list[list[int]]:
            out: list[list[int]] = []
            while len(out) < count:
                out += [batch.tolist() for batch in loader]
            return out

        whole = batches(TrainLoader(range(10), BatchSampler(10, 3, seed=1)), 9)  # type: ignore[arg-type]
        assert whole[:3] != whole[3:6], "every epoch has its own order"
        for done in (0, 2, 3, 4):
            restored = TrainLoader(range(10), BatchSampler(10, 3, seed=1))  # type: ignore[arg-type]
            restored.load_state_dict({"batches": done})
            assert batches(restored, 9 - done) == whole[done:]
            assert restored.state_dict() == {"batches": 9}

    def test_a_batch_that_cannot_be_made_is_refused(self) -> None:
        with pytest.raises(ValueError, match="batch_size: expected a positive multiple of the number of processes 2"):
            BatchSampler(8, 3, world_size=2)
        with pytest.raises(ValueError, match="at most the 6 samples of an epoch"):
            BatchSampler(3, 7, repeat=2)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_of_evaluation_data_are_of_one_length_and_hold_every_sample_once(processes: int) -> None:
    samples = [{"value": index} for index in range(5)]
    shares = [
        list(evaluation_loader(tiny_config(), samples, rank=rank, world_size=processes)) for rank in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    assert sorted(batch["value"].item() for share in shares for batch in share if batch) == list(range(5))
