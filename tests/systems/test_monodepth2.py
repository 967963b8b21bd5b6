"""The training step of Monodepth2: modes, schedule, what is logged, drawn and refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from tiny_run import TinyDepth, TinyPose, tiny_config
from torch import Tensor, nn
from torch.utils.data import default_collate

from mdepth_fast.data import SyntheticScenes
from mdepth_fast.ops import min_reprojection
from mdepth_fast.systems import Views
from mdepth_fast.systems.monodepth2 import Monodepth2
from mdepth_fast.training.loader import BatchSampler, TrainLoader
from mdepth_fast.training.module import TrainingModule
from mdepth_fast.training.run import train


class Watch(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.logged: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.logged = dict(trainer.callback_metrics)


def fit(module: TrainingModule, dataset: Any, epochs: int, *, batch_size: int = 2, repeat: int = 1) -> Watch:
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
    module = TrainingModule(Monodepth2(config, TinyDepth(), pose, sources))
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
    module = TrainingModule(Monodepth2(config, TinyDepth(), None, ("stereo",)))
    used: list[float] = []
    module.on_before_optimizer_step = lambda optimizer: used.append(optimizer.param_groups[0]["lr"])  # type: ignore[method-assign]
    fit(module, SyntheticScenes(2, 32, 32, sources=("stereo",)), 17)
    assert len(used) == 17
    assert used[14] == pytest.approx(1e-4)
    assert used[15] == pytest.approx(1e-5)
    assert used == sorted(used, reverse=True)


def test_one_optimiser_group_holds_every_network() -> None:
    module = TrainingModule(Monodepth2(tiny_config(), TinyDepth(), TinyPose(), (-1,)))
    optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.Adam)
    assert len(optimizer.param_groups) == 1
    expected = [*module.system.depth_net.parameters(), *module.system.pose_net.parameters()]
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in expected}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples() -> None:
    net = TinyDepth()
    nn.init.constant_(net.heads[0].bias, float("nan"))
    module = TrainingModule(Monodepth2(tiny_config(), net, None, ("stereo",)))
    with pytest.raises(ValueError, match=r"loss: expected a finite number at step 0, got nan; samples \['synthetic"):
        fit(module, SyntheticScenes(2, 32, 32, sources=("stereo",)), 1)


def test_a_flat_disparity_is_reported() -> None:
    net = TinyDepth()
    for head in net.heads:
        nn.init.zeros_(head.weight)
    for parameter in net.parameters():
        parameter.requires_grad_(parameter is net.heads[0].bias)
    module = TrainingModule(Monodepth2(tiny_config(optimizer__lr=1e-6), net, None, ("stereo",)))
    with pytest.warns(UserWarning, match="the disparity is flat at step"):
        fit(module, SyntheticScenes(2, 32, 32, sources=("stereo",)), 60)


def test_frame_offsets_need_a_pose_network() -> None:
    with pytest.raises(ValueError, match="pose_net: expected a network for the frame offsets"):
        Monodepth2(tiny_config(), TinyDepth(), None, (-1, "stereo"))
    with pytest.raises(ValueError, match="sources: expected at least one"):
        TrainingModule(Monodepth2(tiny_config(), TinyDepth(), TinyPose(), ()))


def test_augmentation_of_a_step_depends_on_its_place_alone() -> None:
    module = TrainingModule(Monodepth2(tiny_config(seed=5), TinyDepth(), None, ("stereo",)))
    first = torch.rand(4, generator=module._generator(7))
    torch.rand(100)
    assert torch.equal(first, torch.rand(4, generator=module._generator(7)))
    assert not torch.equal(first, torch.rand(4, generator=module._generator(8)))
    module.config.seed = 6
    assert not torch.equal(first, torch.rand(4, generator=module._generator(7)))


@pytest.mark.parametrize("auto_mask", [True, False])
def test_the_panel_shows_the_objective_that_trained(auto_mask: bool) -> None:
    """Its mask has the weights of the run, which decide what fits better; it is named where training had none."""
    torch.manual_seed(0)
    scenes = SyntheticScenes(1, 64, 96, sources=(-1, 1))
    net, pose = TinyDepth(), TinyPose()
    kept = []
    for ssim_weight in (0.0, 0.95):
        config = tiny_config(loss={"ssim_weight": ssim_weight, "auto_mask": auto_mask}, pose__name="tiny_pose")
        system = Monodepth2(config, net, pose, (-1, 1)).eval()
        with torch.inference_mode():
            views = Views.of_batch(system.augment(default_collate([scenes[0]])), system.sources)
            disparities, transforms, _ = system.outputs(views)
            depth = system.to_depth(disparities[0])
            expected = min_reprojection(
                views.target,
                views.sources,
                depth,
                views.K,
                transforms,
                source_K=views.source_K,
                ssim_weight=ssim_weight,
            )
            ((title, mask),) = system.preview(scenes[0]).masks.items()
            cells = system.panel(scenes[0])
        assert torch.equal(mask, expected.selection[0, 0] >= 0)
        assert title == ("auto-mask" if auto_mask else "auto-mask (not trained with)")
        assert cells[-1].title.startswith(f"{title}: ")
        kept.append(mask)
    assert not torch.equal(*kept)


def test_a_run_with_a_pose_network_in_units_of_depth(tmp_path: Path) -> None:
    """posecnn, with transforms for each scale, through training and panel."""
    config = tiny_config(output=str(tmp_path), pose__name="posecnn", trainer__max_steps=2)
    result = train(config)
    assert result is not None and result.panel.is_file()
