"""Monodepth2 (Godard, Mac Aodha, Firman, Brostow, ICCV 2019, arXiv 1806.01260), modes M, S, MS."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from mdepth_fast.losses import MonodepthLoss
from mdepth_fast.losses.monodepth import MonodepthParts
from mdepth_fast.systems.registry import packaged_presets, register_system
from mdepth_fast.systems.self_supervised import Objective, Outputs, SelfSupervisedSystem, ViewsConfig
from mdepth_fast.systems.views import Views

__all__ = ["LossConfig", "Monodepth2", "Monodepth2Config", "Monodepth2Objective"]


@dataclass
class LossConfig:
    """Settings of `mdepth_fast.losses.MonodepthLoss`; the depth range comes from the model.

    Args:
        smoothness: weight of the smoothness term at scale 0.
        ssim_weight: share of SSIM in the photometric error.
        auto_mask: mask pixels that the unwarped source explains better.
    """

    smoothness: float = 1e-3
    ssim_weight: float = 0.85
    auto_mask: bool = True


@dataclass
class Monodepth2Config(ViewsConfig):
    """A Monodepth2 run, which learns depth and motion from video or stereo.

    Args:
        system: monodepth2.
    """

    loss: LossConfig = field(default_factory=LossConfig)
    system: Literal["monodepth2"] = "monodepth2"


class Monodepth2Objective(Objective):
    """`MonodepthLoss` on views: per-pixel minimum reprojection, auto-masking, edge-aware smoothness."""

    def __init__(self, loss: MonodepthLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        loss, parts = self._parts(self.loss, views, outputs)
        return {
            "loss": loss,
            "photometric": parts.photometric.mean(),
            "smoothness": parts.smoothness.mean(),
            "auto_masked": (parts.selection[0] < 0).float().mean(),
        }

    def masks(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        """The pixels that a warped source explains better than an unwarped one, under this objective's weights.

        The mask is also shown if training did not use it; then the title says so.
        """
        loss, title = self.loss, "auto-mask"
        trained = loss.min_reprojection
        if not trained.auto_mask:
            title = "auto-mask (not trained with)"
            loss = MonodepthLoss(
                loss.min_depth,
                loss.max_depth,
                loss.smoothness,
                trained.ssim_weight,
                auto_mask=True,
                padding=trained.padding,
            )
        _, parts = self._parts(loss, views, outputs)
        return {title: parts.selection[0][:, 0] >= 0}

    @staticmethod
    def _parts(loss: MonodepthLoss, views: Views, outputs: Outputs) -> tuple[Tensor, MonodepthParts]:
        return loss(
            outputs.disparities,
            views.target,
            views.sources,
            views.K,
            outputs.transforms,
            views.pyramid,
            source_K=views.source_K,
            return_parts=True,
        )


@register_system
class Monodepth2(SelfSupervisedSystem[Monodepth2Config]):
    name = "monodepth2"
    about = "self-supervised, from video or stereo (Monodepth2)"
    aliases = ("self_supervised",)
    config_class = Monodepth2Config
    presets = packaged_presets("folder", "kitti_mono", "kitti_mono_stereo", "kitti_stereo", "motorcycle", "synthetic")

    def build_objective(self) -> Objective:
        limits = self.config.model
        return Monodepth2Objective(MonodepthLoss(limits.min_depth, limits.max_depth, **vars(self.config.loss)))
