"""The picture of a trained sample: image, prediction, ground truth, error, auto-mask."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mdepth_fast.training.module import DepthModule
from mdepth_fast.visualize import Cell, draw_panel

__all__ = ["write_panel"]


def write_panel(path: Path, module: DepthModule[Any], sample: Any) -> None:
    """Draws what there is: image and prediction, ground truth and error, auto-mask.

    Where the protocol scales predictions by the median, so does the panel.
    """
    module = module.eval()
    with torch.inference_mode():
        image, depth, measured, selection = module.preview(sample)
    prediction = depth.numpy()
    unit = module.depth_net.unit or "relative"
    cells = [Cell("image", image.permute(1, 2, 0).numpy())]
    if measured is not None:
        truth = F.interpolate(measured[None], prediction.shape, mode="nearest")[0, 0].numpy()
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
        kept = (selection >= 0).numpy()
        cells.append(Cell(f"auto-mask: {1 - kept.mean():.1%} dark", kept.astype(float), "gray", (0.0, 1.0), "kept"))
    draw_panel(path, cells, title=str(sample["name"]))
