"""Training from measured depth as a LightningModule: the supervised systems, each with the loss of its paper."""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from mdepth_fast.data import DepthAugment
from mdepth_fast.training.config import SupervisedConfig
from mdepth_fast.training.module import DepthModule, Preview
from mdepth_fast.training.setup import build_loss
from mdepth_fast.training.trained import predict_sample

__all__ = ["SupervisedDepth"]


class SupervisedDepth(DepthModule[SupervisedConfig]):
    """Trains a depth network from batches of `DepthSample`.

    A network that is trained in stages (`config.stages`) has an attribute `stage`, which says what `forward` gives and
    which parameters learn. The stage is a function of the step alone, so that a resumed run knows it.

    Args:
        config: loss, optimiser, augmentation, stages, seed and validation protocol; stored in every checkpoint.
        depth_net: images (B,3,H,W) to what the loss takes, see `mdepth_fast.losses`.
    """

    def __init__(self, config: SupervisedConfig, depth_net: Any) -> None:
        super().__init__(config, depth_net)
        self.augment = DepthAugment(**vars(config.augment))
        self.loss = build_loss(config.loss, depth_net)
        if config.stages and not hasattr(depth_net, "stage"):
            raise ValueError(f"stages: {config.model.name} is not trained in stages, got {config.stages}")
        learning: list[nn.Parameter] = []
        for stage, steps in config.stages.items():
            if steps < 1:
                raise ValueError(f"stages.{stage}: expected at least one step, got {steps}")
            self._enter(stage)
            learning += [parameter for parameter in depth_net.parameters() if parameter.requires_grad]
        if config.stages:
            self._enter_stage_of(0)
        # Distributed training exchanges the gradients of what requires one before the first step.
        for parameter in learning:
            parameter.requires_grad_(True)
        self.train()

    def _enter_stage_of(self, step: int) -> None:
        names, ends = list(self.config.stages), accumulate(self.config.stages.values())
        self._enter(next((name for name, end in zip(names, ends) if step < end), names[-1]))

    def _enter(self, stage: str) -> None:
        self.depth_net.stage = stage
        self._freeze_norms()

    def train(self, mode: bool = True) -> "SupervisedDepth":
        super().train(mode)
        self._freeze_norms()
        return self

    def _freeze_norms(self) -> None:
        if self.config.model.freeze_bn:
            for module in self.depth_net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval().requires_grad_(False)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Those of the network, where its paper multiplies the rate of some layers; without what never learns."""
        hook = getattr(self.depth_net, "parameter_groups", None)
        groups = []
        for stage in self.config.stages or [None]:
            if stage:
                self._enter(stage)
            found = hook(lr) if hook else [{"params": self.depth_net.parameters()}]
            groups += [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in found]
        if self.config.stages:
            self._enter_stage_of(self.global_step)
        return [group for group in groups if group["params"]]

    def describe(self, samples: int) -> str:
        augment = self.config.augment
        stages = ", ".join(f"{name} for {steps} steps" for name, steps in self.config.stages.items())
        line = f"on {samples} samples of {self.config.data.name} at {augment.height}x{augment.width}"
        return f"{line}, {stages}" if stages else line

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.config.stages:
            self._enter_stage_of(self.global_step)
        # Dropout draws from the global state.
        torch.manual_seed(self._seed(batch_idx, "dropout"))
        batch = self.augment(batch, self._generator(batch_idx))
        output = self.depth_net(batch["target"])
        loss = self.loss(output, self.depth_net.ground_truth(batch["depth"], tuple(output.shape[-2:])))
        self._report(loss, batch["name"])
        return loss

    def preview(self, sample: Any) -> Preview:
        image, truth = sample["target"], sample["depth"]
        if image.is_floating_point():
            image = (255 * image).round().to(torch.uint8)
        prediction = predict_sample(self.depth_net, default_collate([sample]), flip=False)
        depth = prediction.depth
        if "window" in sample:
            top, bottom, left, right = sample["window"].tolist()
            depth, truth = (values[..., top:bottom, left:right] for values in (depth, truth))
        return Preview(image, depth[0, 0], None if prediction.kind == "affine_inverse" else truth, None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.config.stages:
            checkpoint["mdepth_fast"]["stage"] = self.depth_net.stage
