"""Self-supervised training of depth and motion as a LightningModule: Monodepth2 (arXiv 1806.01260), modes M, S, MS."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import default_collate

from mdepth_fast.data import Augment
from mdepth_fast.geometry import pose_matrix
from mdepth_fast.losses import MonodepthLoss
from mdepth_fast.ops import disparity_to_depth
from mdepth_fast.training.config import SelfSupervisedConfig
from mdepth_fast.training.module import DepthModule, Preview

__all__ = ["SelfSupervisedDepth"]

# A disparity whose spread over an image is below this share of its mean carries no shape.
_FLAT = 1e-3


class SelfSupervisedDepth(DepthModule[SelfSupervisedConfig]):
    """Trains a depth network, and a pose network where some pose is unknown, from `mdepth_fast.data` batches.

    Args:
        config: loss, optimiser, augmentation, seed and validation protocol; stored in every checkpoint.
        depth_net: images (B,3,H,W) to a list of sigmoid maps, finest first.
        pose_net: two images (B,3,H,W) in temporal order to axis-angle and translation (B,3) of the motion from the
            first to the second; None where the data know every pose (mode S).
        sources: the data set's `sources`: integers are frame offsets for the pose network, names have a known pose.
    """

    def __init__(
        self, config: SelfSupervisedConfig, depth_net: Any, pose_net: nn.Module | None, sources: Sequence[int | str]
    ) -> None:
        super().__init__(config, depth_net)
        if not sources:
            raise ValueError("sources: expected at least one frame offset or named source, got none")
        if pose_net is None and any(isinstance(source, int) for source in sources):
            raise ValueError(f"pose_net: expected a network for the frame offsets of sources {sources!r}, got None")
        self.sources = tuple(sources)
        self.pose_net = pose_net
        self.augment = Augment(**vars(config.augment))
        self.loss = MonodepthLoss(config.model.min_depth, config.model.max_depth, **vars(config.loss))

    def describe(self, samples: int) -> str:
        kinds = (("M", int), ("S", str))
        mode = "".join(letter for letter, kind in kinds if any(isinstance(source, kind) for source in self.sources))
        data = self.config.data
        size = f"{data.height}x{data.width}"
        return f"in mode {mode} on {samples} samples of {data.name} at {size}, sources {list(self.sources)}"

    def to_depth(self, disparity: Tensor) -> Tensor:
        """A sigmoid map to depth in the range of the configuration, float32 under any precision."""
        limits = self.config.model
        return disparity_to_depth(disparity.float(), min_depth=limits.min_depth, max_depth=limits.max_depth)

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
        if self._looks():
            self._check_shape(disparities[0].detach())
        self._report(
            loss,
            batch["name"],
            photometric=parts.photometric.detach().mean(),
            smoothness=parts.smoothness.detach().mean(),
            auto_masked=(parts.selection[0] < 0).float().mean(),
        )
        return loss

    def _check_shape(self, disparity: Tensor) -> None:
        spread = (disparity.float().std((1, 2, 3)) / disparity.float().mean((1, 2, 3))).max()
        if self.global_step > 0 and spread < _FLAT:
            rank_zero_warn(
                f"the disparity is flat at step {self.global_step} (spread {spread.item():.1e} of its mean): training "
                "has collapsed; check the intrinsics, the depth range and that the camera moves"
            )

    def preview(self, sample: Any) -> Preview:
        batch = self.augment(default_collate([sample]))
        disparities = self.depth_net(batch["target_aug"])
        selection = None
        if batch["sources"].shape[1] == len(self.sources):
            # Shown whether or not training used it: it says where the unmoved source fits better than the warped one.
            masked = MonodepthLoss(self.config.model.min_depth, self.config.model.max_depth, auto_mask=True)
            _, parts = masked(
                disparities,
                batch["target"],
                batch["sources"],
                batch["K"],
                self.poses(batch, disparities[0]),
                batch["pyramid"],
                source_K=batch["source_K"],
                return_parts=True,
            )
            selection = parts.selection[0][0, 0]
        return Preview(sample["target"], self.to_depth(disparities[0])[0, 0], sample.get("depth"), selection)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["mdepth_fast"]["sources"] = list(self.sources)
