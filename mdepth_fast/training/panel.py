"""The picture of a trained sample: image, prediction, ground truth, error, auto-mask."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from mdepth_fast.losses import MonodepthLoss
from mdepth_fast.training.module import SelfSupervisedDepth
from mdepth_fast.visualize import Cell, draw_panel

__all__ = ["write_panel"]


def write_panel(path: Path, module: SelfSupervisedDepth, sample: Any) -> None:
    """Draws what there is: ground truth and error need "depth" in the sample, the auto-mask needs its sources.

    Maps are drawn at the network's size. Where the protocol scales predictions by the median, so does the panel.
    """
    module = module.eval()
    with torch.inference_mode():
        batch = module.augment(default_collate([sample]))
        disparities = module.depth_net(batch["target_aug"])
        depth = module.to_depth(disparities[0])
        selection = None
        if batch["sources"].shape[1] == len(module.sources):
            # Drawn whether or not training used it: it shows where the unmoved source fits better than the warped one.
            masked = MonodepthLoss(module.config.model.min_depth, module.config.model.max_depth, auto_mask=True)
            _, parts = masked(
                disparities,
                batch["target"],
                batch["sources"],
                batch["K"],
                module.poses(batch, disparities[0]),
                batch["pyramid"],
                source_K=batch["source_K"],
                return_parts=True,
            )
            selection = parts.selection[0][0, 0].numpy()
    image = batch["target"][0].permute(1, 2, 0).numpy()
    prediction = depth[0, 0].numpy()
    unit = module.depth_net.unit or "relative"
    cells = [Cell("image", image)]
    if "depth" in batch:
        truth = F.interpolate(batch["depth"], prediction.shape, mode="nearest")[0, 0].numpy()
        valid = truth > 0
        title = "prediction"
        if module.evaluator.protocol.alignment == "median":
            ratio = float(np.median(truth[valid]) / np.median(prediction[valid]))
            prediction, title, unit = prediction * ratio, f"prediction x {ratio:.3g} (median)", "m"
        bounds = (float(np.percentile(truth[valid], 1)), float(np.percentile(truth[valid], 99)))
        error = np.abs(prediction - truth) / np.where(valid, truth, 1)
        cells += [
            Cell(title, prediction, "magma_r", bounds, f"depth ({unit})"),
            Cell("ground truth", np.where(valid, truth, np.nan), "magma_r", bounds, "depth (m)"),
            Cell(
                f"relative error, mean {error[valid].mean():.3f}",
                np.where(valid, error, np.nan),
                "inferno",
                (0.0, 0.25),
                "|error| / depth",
            ),
        ]
    else:
        cells.append(Cell("prediction", prediction, "magma_r", None, f"depth ({unit})"))
    if selection is not None:
        share = float((selection < 0).mean())
        cells.append(Cell(f"auto-mask: {share:.1%} dark", (selection >= 0).astype(float), "gray", (0.0, 1.0), "kept"))
    draw_panel(path, cells, title=str(sample["name"]))
