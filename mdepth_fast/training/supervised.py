"""Training from measured depth as a LightningModule: the supervised systems, each with the loss of its paper."""

from typing import Any

import torch
from torch import Tensor, nn

from mdepth_fast.models import DepthModel
from mdepth_fast.training.config import SupervisedConfig
from mdepth_fast.training.module import DepthModule, Preview

__all__ = ["SupervisedDepth"]


class SupervisedDepth(DepthModule[SupervisedConfig]):
    """Trains a depth network from batches of `DepthSample`.

    Args:
        config: optimiser, augmentation, seed and validation protocol; stored in every checkpoint.
        depth_net: images (B,3,H,W) to what `loss` takes.
        loss: called as loss(output, depth), depth (B,1,h,w) at the size of the output, metres, 0 = none.
        augment: a batch and a generator to the images and depth of a step.
    """

    def __init__(self, config: SupervisedConfig, depth_net: DepthModel, loss: nn.Module, augment: nn.Module) -> None:
        super().__init__(config, depth_net)
        self.loss, self.augment = loss, augment
        self.train()

    def train(self, mode: bool = True) -> "SupervisedDepth":
        super().train(mode)
        if self.config.model.freeze_bn:
            for module in self.depth_net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Those of the network, where its paper multiplies the rate of some layers; without what is frozen."""
        hook = getattr(self.depth_net, "parameter_groups", None)
        groups = hook(lr) if hook else [{"params": self.depth_net.parameters()}]
        return [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]

    def describe(self, samples: int) -> str:
        return f"on {samples} samples of {self.config.data.name}"

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        # Dropout draws from the global state.
        torch.manual_seed(self._seed(batch_idx, "dropout"))
        batch = self.augment(batch, self._generator(batch_idx))
        output = self.depth_net(batch["target"])
        depth = self.depth_net.ground_truth(batch["depth"], output.shape[-2:])
        loss = self.loss(output, depth)
        self._report(loss, batch["name"])
        return loss

    def preview(self, sample: Any) -> Preview:
        image = sample["target"]
        return Preview(image, self.depth_net.predict(image.float() / 255).depth[0, 0], None)
