"""Self-supervised training of depth and motion as a LightningModule: Monodepth2 (arXiv 1806.01260), modes M, S, MS."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from mdepth_fast.data import Augment
from mdepth_fast.evaluation import METRICS, Evaluator
from mdepth_fast.geometry import disparity_to_depth, pose_matrix
from mdepth_fast.losses import MonodepthLoss
from mdepth_fast.training.config import Config

__all__ = ["SelfSupervisedDepth"]

_SHOWN = ("abs_rel", "rmse", "d1")
# A disparity whose spread over an image is below this share of its mean carries no shape.
_FLAT = 1e-3


class SelfSupervisedDepth(LightningModule):
    """Trains a depth network, and a pose network where some pose is unknown, from `mdepth_fast.data` batches.

    Args:
        config: loss, optimiser, augmentation, seed and validation protocol; stored in every checkpoint.
        depth_net: images (B,3,H,W) to a list of sigmoid maps, finest first.
        pose_net: two images (B,3,H,W) in temporal order to axis-angle and translation (B,3) of the motion from the
            first to the second; None where the data know every pose (mode S).
        sources: the data set's `sources`: integers are frame offsets for the pose network, names have a known pose.
    """

    def __init__(
        self, config: Config, depth_net: nn.Module, pose_net: nn.Module | None, sources: Sequence[int | str]
    ) -> None:
        super().__init__()
        if not sources:
            raise ValueError("sources: expected at least one frame offset or named source, got none")
        if pose_net is None and any(isinstance(source, int) for source in sources):
            raise ValueError(f"pose_net: expected a network for the frame offsets of sources {sources!r}, got None")
        self.config, self.sources = config, tuple(sources)
        self.depth_net, self.pose_net = depth_net, pose_net
        self.augment = Augment(**vars(config.augment))
        self.loss = MonodepthLoss(config.model.min_depth, config.model.max_depth, **vars(config.loss))
        self.evaluator = Evaluator(config.protocol)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1] to depth (B,1,H,W)."""
        return self.to_depth(self.depth_net(images)[0])

    def to_depth(self, disparity: Tensor) -> Tensor:
        """A sigmoid map to depth in the range of the configuration, float32 under any precision."""
        return disparity_to_depth(disparity.float(), self.config.model.min_depth, self.config.model.max_depth)

    def poses(self, batch: dict[str, Any], disparity: Tensor) -> Tensor:
        """Transforms (B,S,4,4) from the target to every source: predicted for frame offsets, else as given.

        The pose network always sees the earlier frame first; the motion to an earlier source is the inverse of what
        it predicts. A network with `scale_by_inverse_depth` has its translation multiplied by the per-image mean of
        1 / depth (arXiv 1712.00175), `disparity` (B,1,H,W) being the finest sigmoid map.
        """
        transforms = []
        for index, source in enumerate(self.sources):
            if isinstance(source, str) or self.pose_net is None:
                transforms.append(batch["T"][:, index])
                continue
            target, other = batch["target_aug"], batch["sources_aug"][:, index]
            earlier = source < 0
            axis_angle, translation = self.pose_net(other, target) if earlier else self.pose_net(target, other)
            if getattr(self.pose_net, "scale_by_inverse_depth", False):
                translation = translation * self.to_depth(disparity).reciprocal().mean((2, 3))
            transforms.append(pose_matrix(axis_angle.float(), translation.float(), invert=earlier))
        return torch.stack(transforms, 1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        batch = self.augment(batch, self._generator(batch_idx))
        disparities = self.depth_net(batch["target_aug"])
        loss, parts = self.loss(
            disparities,
            batch["target"],
            batch["sources"],
            batch["K"],
            self.poses(batch, disparities[0]),
            batch["pyramid"],
            source_K=batch["source_K"],
            return_parts=True,
        )
        if self.global_step % self.config.trainer.log_every_n_steps == 0:
            self._examine(loss.detach(), disparities[0].detach(), batch["name"])
        options: dict[str, Any] = {"batch_size": len(batch["target"]), "sync_dist": self.trainer.world_size > 1}
        self.log("loss", loss.detach(), prog_bar=True, **options)
        self.log("photometric", parts.photometric.detach().mean(), **options)
        self.log("smoothness", parts.smoothness.detach().mean(), **options)
        self.log("auto_masked", (parts.selection[0] < 0).float().mean(), **options)
        return loss

    def _generator(self, batch_idx: int) -> torch.Generator:
        """Random numbers of one step, a function of where it is in the run: a resumed run draws the same ones."""
        place = (self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def _examine(self, loss: Tensor, disparity: Tensor, names: list[str]) -> None:
        if not loss.isfinite():
            raise ValueError(
                f"loss: expected a finite number at step {self.global_step}, got {loss.item()}; samples {names}"
            )
        spread = (disparity.float().std((1, 2, 3)) / disparity.float().mean((1, 2, 3))).max()
        if self.global_step > 0 and spread < _FLAT:
            rank_zero_warn(
                f"the disparity is flat at step {self.global_step} (spread {spread.item():.1e} of its mean): training "
                "has collapsed; check the intrinsics, the depth range and that the camera moves"
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        options = self.config.optimizer
        # Fused: the default goes over every parameter several times, which shows on a CPU.
        optimizer = torch.optim.Adam(self.parameters(), lr=options.lr, fused=True)
        # Stepped by Lightning at the END of an epoch: epochs 0..step_size-1 run at the full rate, as in the paper.
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, options.step_size, options.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def on_validation_epoch_start(self) -> None:
        self.evaluator = Evaluator(self.config.protocol)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """A batch of one evaluation sample; every process sees all of them."""
        depth = self(batch["target"].float() / 255)
        self.evaluator.update(depth, batch["depth"], batch["name"][0])

    def on_validation_epoch_end(self) -> None:
        summary = self.evaluator.compute()
        for key in METRICS:
            self.log(f"val/{key}", summary[key], prog_bar=key in _SHOWN)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mdepth_fast"] = {"config": self.config.to_dict(), "sources": list(self.sources)}
