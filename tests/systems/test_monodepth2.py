"""The training step of Monodepth2: modes, schedule, what is logged, drawn and refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from tiny_run import TinyDepth, TinyPose, tiny_config
from torch import Tensor, nn
from torch.utils.data import default_collate

from mdepth_fast.data import KittiRaw, SyntheticScenes
from mdepth_fast.geometry import pose_matrix
from mdepth_fast.inference import load_system, load_trained
from mdepth_fast.models import Monodepth2 as DepthNet
from mdepth_fast.models import SharedPoseNet, register_model
from mdepth_fast.models.base import DisparityModel
from mdepth_fast.models.monodepth2 import _DepthDecoder
from mdepth_fast.ops import min_reprojection
from mdepth_fast.systems import StepInfo, Views, load_config
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
    with pytest.raises(ValueError, match=r"loss: expected a finite number at step 1, got nan; samples \['synthetic"):
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


class NarrowEncoder(nn.Module):
    channels = (8, 8, 16, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())
            for inputs, outputs in zip((3, *self.channels), self.channels, strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [images]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


class NarrowDepth(DepthNet):
    """Monodepth2's network on a narrow encoder."""

    def __init__(self, scales: tuple[int, ...] = (0, 1, 2, 3), **options: Any) -> None:
        DisparityModel.__init__(self, scales=scales, **({"min_depth": 0.1, "max_depth": 100.0} | BLANK | options))
        self.encoder = NarrowEncoder()  # type: ignore[assignment]
        self.decoder = _DepthDecoder(self.encoder.channels, scales)


BLANK: dict[str, Any] = {"unit": None, "input_size": None}
register_model("narrow_depth", NarrowDepth)

# Every switch of the ablations, alone and all that go together.
VARIANTS: dict[str, list[str]] = {
    "average": ["--loss.average_reprojection=true"],
    "native scale": ["--loss.native_scale=true"],
    "plain": ["--loss.auto_mask=false", "--loss.ssim_weight=0"],
    "noise": ["--loss.identity_noise=1e-5"],
    "mask": ["--loss.predictive_mask=true", "--loss.auto_mask=false"],
    "two scales": ["--model.scales=[0,2]"],
    "shared": ["--pose.name=posenet_shared"],
    "shared all": ["--pose.name=posenet_shared", "--pose.input=all"],
    "posecnn all": ["--pose.name=posecnn", "--pose.input=all"],
    "resnet all": ["--pose.name=posenet_resnet18", "--pose.input=all"],
}
VARIANTS["all"] = [
    word for name in ("average", "native scale", "plain", "mask", "two scales") for word in VARIANTS[name]
]
VARIANTS["all"] += VARIANTS["shared all"]


def variant(name: str, root: Path, *words: str) -> Any:
    """Configuration of a variant on real frames of both cameras."""
    config = load_config(
        "kitti_mono_stereo",
        [
            f"--data.root={root}",
            "--data.height=64",
            "--data.width=96",
            "--data.batch_size=2",
            "--data.workers=0",
            "--model.name=narrow_depth",
            "--pose.name=posecnn",
            "--optimizer.lr=1e-3",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            *VARIANTS[name],
            *words,
        ],
    )
    return config


@pytest.fixture(scope="module")
def frames(real_data: Path) -> Path:
    return real_data / "kitti_raw"


@pytest.fixture(scope="module")
def pair(frames: Path) -> tuple[KittiRaw, dict[str, Any]]:
    """The data of all variants, and a batch of them."""
    dataset: KittiRaw = Monodepth2.training_data(variant("plain", frames))
    assert dataset.sources == (-1, 1, "stereo")
    return dataset, default_collate([dataset[0], dataset[1]])


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_from_real_frames(name: str, frames: Path, pair: tuple[KittiRaw, dict[str, Any]]) -> None:
    torch.manual_seed(0)
    config, (dataset, batch) = variant(name, frames), pair
    system = Monodepth2.create(config, dataset)
    optimizer = torch.optim.Adam(system.parameters(), 1e-3)
    losses = []
    for step in range(3):
        info = StepInfo(step, torch.Generator().manual_seed(0), False)
        terms = system.step(batch, info)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())
    assert all(any((p.grad != 0).any() for p in net.parameters()) for net in system.children() if [*net.parameters()])  # type: ignore[operator]
    assert ("mask" in terms) == config.loss.predictive_mask
    assert (terms["auto_masked"] > 0) == config.loss.auto_mask


def test_a_run_of_all_switches_is_read_back(frames: Path, tmp_path: Path) -> None:
    config = variant("all", frames, f"--output={tmp_path}", "--trainer.max_steps=1")
    result = train(config)
    assert result is not None and result.panel.is_file()
    system = load_system(result.folder)
    assert system.mask_net is not None and system.sources == (-1, 1, "stereo")
    assert load_trained(result.folder).net.scales == (0, 2)
    # And another run starts from it, its mask included.
    weights = [f"--model.weights={result.folder}", f"--pose.weights={result.folder}"]
    again = Monodepth2.create(variant("all", frames, *weights), Monodepth2.training_data(config))
    for key, value in system.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


class Watched(SharedPoseNet):
    """Remembers the features that it sees."""

    def numbers(self, frames: Tensor) -> Tensor:
        self.seen = frames
        return super().numbers(frames)


@pytest.mark.parametrize("together", ["pairs", "all"])
def test_a_shared_pose_network_sees_the_features_of_the_depth_network(together: str, frames: Path) -> None:
    torch.manual_seed(0)
    config = variant("shared", frames, f"--pose.input={together}")
    dataset = Monodepth2.training_data(config)
    pose = Watched(32, frames=3 if together == "all" else 2)
    system = Monodepth2(config, NarrowDepth(), pose, dataset.sources).eval()
    views = Views.of_batch(system.augment(default_collate([dataset[0]])), dataset.sources)
    with torch.no_grad():
        outputs = system.outputs(views)
        last = [system.depth_net.encode(one)[-1] for one in (views.target_aug, *views.sources_aug.unbind(1))]
        depths = system.depth_net(views.target_aug)
    for got, want in zip(outputs.disparities, depths, strict=True):
        torch.testing.assert_close(got, want)
    # Pairs end with the source after the target; all sees target, before, after. Never the other camera's.
    seen = [last[0], last[2]] if together == "pairs" else [last[0], last[1], last[2]]
    torch.testing.assert_close(pose.seen, torch.cat(seen, 1))
    assert torch.equal(outputs.transforms[:, 2], views.T[:, 2])  # type: ignore[index]


def test_all_poses_lead_from_the_target_and_none_is_inverted(frames: Path) -> None:
    torch.manual_seed(0)
    config = variant("resnet all", frames)
    dataset = Monodepth2.training_data(config)
    system = Monodepth2.create(config, dataset).eval()
    views = Views.of_batch(system.augment(default_collate([dataset[0]])), dataset.sources)
    pose: Any = system.pose_net
    with torch.no_grad():
        T = system.outputs(views).transforms
        stacked = torch.stack([views.target_aug, views.sources_aug[:, 0], views.sources_aug[:, 1]], 1)
        axis_angle, translation = pose.all_poses(stacked)
    assert pose.encoder.conv1.weight.shape[1] == 9 and pose.decoder[3].out_channels == 12
    for source in range(2):
        want = pose_matrix(axis_angle[:, source], translation[:, source])
        torch.testing.assert_close(T[:, source], want)  # type: ignore[index]


def test_switches_that_do_not_go_together_are_refused(frames: Path) -> None:
    dataset = Monodepth2.training_data(variant("plain", frames))
    for words, message in (
        (["--loss.predictive_mask=true"], "predictive_mask: expected auto_mask=False with it"),
        (["--pose.name=posenet_shared", "--model.name=tiny_depth"], "pose.name: needs the features of a network"),
        (["--model.name=tiny_depth", *VARIANTS["mask"]], "loss.predictive_mask: needs the features of a network"),
        (["--pose.encoder_weights=resnet18.pth"], r"pose.encoder_weights: .*unexpected keyword argument"),
    ):
        config = variant("noise", frames, *words)
        config.model.scales = [0, 1, 2, 3]
        with pytest.raises(ValueError, match=message):
            Monodepth2.create(config, dataset)
