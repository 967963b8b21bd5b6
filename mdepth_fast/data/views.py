"""What part of an image a published evaluation looks at."""

from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from mdepth_fast.data.depth_transforms import DepthAugment
from mdepth_fast.data.samples import kb_crop

__all__ = ["VIEWS", "EvaluationView"]

VIEWS = ("whole", "centre", "kb", "stretched", "network")


class EvaluationView(Dataset[dict[str, Any]]):
    """Samples of a data set with measured depth as they are evaluated: target (3,h,w), depth (1,h',w'), name.

    view: "whole": as they are. "centre": the target is the part of the image that the centre crop of `augment` shows,
    depth has the size of the image with none outside of that part, and "window" (4,) says where it is: top, bottom,
    left, right. "kb": the same of the 352x1216 pixels that the KITTI depth benchmark keeps. "stretched": the target of
    "centre", all depth and no window, so that a prediction is stretched over it, as in FCRN's evaluation. "network":
    both as `augment` resizes and crops them, the target then float in [0, 1], as in FastDepth's.
    """

    def __init__(self, dataset: Any, view: str, augment: DepthAugment) -> None:
        if view not in VIEWS:
            raise ValueError(f"view: expected one of {', '.join(VIEWS)}, got {view!r}")
        self.dataset, self.view, self.augment = dataset, view, augment.eval()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        if self.view == "whole":
            return sample
        if self.view == "network":
            batch = self.augment(default_collate([sample]))
            return {**sample, "target": batch["target"][0], "depth": batch["depth"][0]}
        image, depth = sample["target"], sample["depth"]
        size = (image.shape[-2], image.shape[-1])
        top, bottom, left, right = kb_crop(*size) if self.view == "kb" else self.augment.centre_window(*size)
        seen = {**sample, "target": image[:, top:bottom, left:right]}
        if self.view == "stretched":
            return seen
        inside = torch.zeros_like(depth)
        inside[:, top:bottom, left:right] = depth[:, top:bottom, left:right]
        return {**seen, "depth": inside, "window": torch.tensor([top, bottom, left, right])}
