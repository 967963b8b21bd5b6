"""The training step: order of the frames, modes, schedule, what is logged and what is refused."""

from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from tiny_run import TinyDepth, TinyPose, tiny_config
from torch import Tensor, nn
from torch.utils.data import default_collate

from mdepth_fast.data import SyntheticScenes
from mdepth_fast.geometry import invert_pose, pose_matrix
from mdepth_fast.training.loader import BatchSampler, TrainLoader
from mdepth_fast.training.self_supervised import SelfSupervisedDepth


class FramePose(nn.Module):
    """The true motion between frames that are filled with their own time: what a perfect pose network gives."""

    velocity = (torch.tensor([0.01, -0.02, 0.005]), torch.tensor([0.1, -0.05, 0.3]))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        elapsed = (second - first).mean((1, 2, 3))[:, None]
        assert (elapsed > 0).all(), "the earlier frame comes first"
        return elapsed * self.velocity[0], elapsed * self.velocity[1]


def frames(sources: tuple[int | str, ...]) -> dict[str, Any]:
    """A batch of 2 whose frames are filled with their time."""
    times = torch.tensor([float(s) if isinstance(s, int) else 0.0 for s in sources])
    shape = (2, len(sources), 3, 32, 32)
    given = torch.eye(4).repeat(2, len(sources), 1, 1)
    given[:, :, 0, 3] = -0.2
    return {
        "target_aug": torch.zeros(2, 3, 32, 32),
        "sources_aug": times.view(1, -1, 1, 1, 1).expand(shape),
        "T": given,
    }


def test_poses_keep_temporal_order_and_invert_towards_the_past() -> None:
    sources = (-1, 1, "stereo", 2)
    module = SelfSupervisedDepth(tiny_config(), TinyDepth(), FramePose(), sources)
    T = module.poses(frames(sources), torch.rand(2, 1, 32, 32))
    rotation, translation = FramePose.velocity
    step = pose_matrix(rotation, translation)
    torch.testing.assert_close(T[0, 0], invert_pose(step))
    torch.testing.assert_close(T[0, 1], step)
    torch.testing.assert_close(T[0, 2], frames(sources)["T"][0, 2])
    torch.testing.assert_close(T[0, 3], pose_matrix(2 * rotation, 2 * translation))


def test_translation_is_scaled_by_mean_inverse_depth_where_the_network_asks_for_it() -> None:
    pose = FramePose()
    pose.scale_by_inverse_depth = True
    module = SelfSupervisedDepth(tiny_config(), TinyDepth(), pose, (-1, 1))
    disparity = torch.rand(2, 1, 32, 32)
    T = module.poses(frames((-1, 1)), disparity)
    inverse_depth = (1 / module.to_depth(disparity)).mean((1, 2, 3))
    rotation, translation = FramePose.velocity
    for sample in range(2):
        expected = pose_matrix(rotation, translation * inverse_depth[sample])
        torch.testing.assert_close(T[sample, 1], expected)
        torch.testing.assert_close(T[sample, 0], invert_pose(expected))


class Watch(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.logged: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.logged = dict(trainer.callback_metrics)


def fit(module: SelfSupervisedDepth, dataset: Any, epochs: int, *, batch_size: int = 2, repeat: int = 1) -> Watch:
    watch = Watch()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(module, TrainLoader(dataset, BatchSampler(len(dataset), batch_size, repeat=repeat)))
    return watch


@pytest.mark.parametrize("sources", [(-1, 1), ("stereo",), (-1, 1, "stereo")], ids=["M", "S", "MS"])
def test_every_mode_trains(sources: tuple[int | str, ...]) -> None:
    torch.manual_seed(0)
    scenes = SyntheticScenes(2, 64, 96, sources=sources)
    batch = default_collate([scenes[0], scenes[1]])
    config = tiny_config(optimizer__lr=3e-3, optimizer__step_size=100, augment__flip=0.0, augment__jitter=0.0)
    pose = TinyPose() if -1 in sources else None
    module = SelfSupervisedDepth(config, TinyDepth(), pose, sources)
    watch = fit(module, scenes, 40)
    # Judged by the photometric error, augmentation off: the same two images at every step.
    first, last = sum(watch.losses[:3]) / 3, sum(watch.losses[-3:]) / 3
    assert last < 0.9 * first, (first, last)
    assert {"loss", "photometric", "smoothness", "auto_masked"} <= set(watch.logged)
    assert 0 <= watch.logged["auto_masked"] <= 1
    assert batch["target"].dtype == torch.uint8
    if pose is not None:
        assert all(parameter.grad is not None for parameter in pose.parameters())


def test_the_rate_drops_at_the_end_of_the_fifteenth_epoch() -> None:
    config = tiny_config(optimizer__lr=1e-4, optimizer__step_size=15, optimizer__gamma=0.1)
    module = SelfSupervisedDepth(config, TinyDepth(), None, ("stereo",))
    used: list[float] = []
    module.on_before_optimizer_step = lambda optimizer: used.append(optimizer.param_groups[0]["lr"])  # type: ignore[method-assign]
    fit(module, SyntheticScenes(2, 32, 32, sources=("stereo",)), 17)
    assert len(used) == 17
    assert used[14] == pytest.approx(1e-4)
    assert used[15] == pytest.approx(1e-5)
    assert used == sorted(used, reverse=True)


def test_one_optimiser_group_holds_every_network() -> None:
    module = SelfSupervisedDepth(tiny_config(), TinyDepth(), TinyPose(), (-1,))
    optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.Adam)
    assert len(optimizer.param_groups) == 1
    expected = [*module.depth_net.parameters(), *module.pose_net.parameters()]  # type: ignore[union-attr]
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in expected}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples() -> None:
    net = TinyDepth()
    nn.init.constant_(net.heads[0].bias, float("nan"))
    module = SelfSupervisedDepth(tiny_config(), net, None, ("stereo",))
    with pytest.raises(ValueError, match=r"loss: expected a finite number at step 0, got nan; samples \['synthetic"):
        fit(module, SyntheticScenes(2, 32, 32, sources=("stereo",)), 1)


def test_a_flat_disparity_is_reported() -> None:
    net = TinyDepth()
    for head in net.heads:
        nn.init.zeros_(head.weight)
    for parameter in net.parameters():
        parameter.requires_grad_(parameter is net.heads[0].bias)
    module = SelfSupervisedDepth(tiny_config(optimizer__lr=1e-6), net, None, ("stereo",))
    with pytest.warns(UserWarning, match="the disparity is flat at step"):
        fit(module, SyntheticScenes(2, 32, 32, sources=("stereo",)), 60)


def test_frame_offsets_need_a_pose_network() -> None:
    with pytest.raises(ValueError, match="pose_net: expected a network for the frame offsets"):
        SelfSupervisedDepth(tiny_config(), TinyDepth(), None, (-1, "stereo"))
    with pytest.raises(ValueError, match="sources: expected at least one"):
        SelfSupervisedDepth(tiny_config(), TinyDepth(), TinyPose(), ())


def test_augmentation_of_a_step_depends_on_its_place_alone() -> None:
    module = SelfSupervisedDepth(tiny_config(seed=5), TinyDepth(), None, ("stereo",))
    first = torch.rand(4, generator=module._generator(7))
    torch.rand(100)
    assert torch.equal(first, torch.rand(4, generator=module._generator(7)))
    assert not torch.equal(first, torch.rand(4, generator=module._generator(8)))
    module.config.seed = 6
    assert not torch.equal(first, torch.rand(4, generator=module._generator(7)))


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
