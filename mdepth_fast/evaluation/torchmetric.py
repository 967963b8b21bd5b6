"""The evaluation as a metric of torchmetrics, whose state is added up over processes."""

import torch
from torch import Tensor
from torchmetrics import Metric

from mdepth_fast import ops
from mdepth_fast.evaluation.evaluator import compare, summarise
from mdepth_fast.evaluation.metrics import METRICS, metrics_of
from mdepth_fast.evaluation.protocols import Protocol, get_protocol

__all__ = ["DepthMetric"]


class DepthMetric(Metric):
    """`Evaluator` for batches and several processes: `update` with a batch, `compute` over those of all processes.

    The numbers are those of an `Evaluator` that has seen all images, but for the statistics of the scales under the
    alignment "median", which no sum gives. Under "median_set" no sum gives anything: ValueError.
    """

    is_differentiable = False
    full_state_update = False
    metrics: Tensor
    sums: Tensor
    images: Tensor

    def __init__(self, protocol: Protocol | str, **options: object) -> None:
        """options: those of `torchmetrics.Metric`."""
        super().__init__(**options)
        self.protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
        if self.protocol.alignment == "median_set":
            raise ValueError(f"protocol: expected one whose images are independent, got {self.protocol.describe()}")
        # Sums over images: their metrics and mean squared error; their pixels' sums; with ground truth, and without.
        for name, count in (("metrics", len(METRICS) + 1), ("sums", len(ops.DEPTH_SUMS)), ("images", 2)):
            self.add_state(name, torch.zeros(count, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, ground_truth: Tensor, *, inverse: bool = False) -> None:
        """prediction, ground_truth: (B, 1, h, w) or (B, h, w), the latter at any size; else as `Evaluator.update`."""
        if prediction.dim() not in (3, 4) or len(prediction) != len(ground_truth):
            raise ValueError(
                "prediction, ground_truth: expected (B, 1, h, w) or (B, h, w), got "
                f"{tuple(prediction.shape)} and {tuple(ground_truth.shape)}"
            )
        for index, (values, truth) in enumerate(zip(prediction, ground_truth)):
            sums = compare(self.protocol, values, truth, f"image {index} of the batch", inverse).sums()
            count = sums[0]
            if count:
                each = [*metrics_of(sums).values(), sums[4] / count]
                self.metrics += self.metrics.new_tensor(each)
                self.sums += self.sums.new_tensor(sums)
            self.images += self.images.new_tensor([bool(count), not count])

    def compute(self) -> dict[str, Tensor]:
        """As `Evaluator.compute`, each a scalar in float64."""
        with_truth, without = self.images.tolist()
        summary = summarise(self.protocol, self.metrics.tolist(), self.sums.tolist(), int(with_truth))
        summary.update(images=with_truth, without_ground_truth=without)
        return {key: self.images.new_tensor(value) for key, value in summary.items()}
