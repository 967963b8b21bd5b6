"""What `evaluate` hands to an evaluator."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mdepth_fast.evaluation import Evaluator, Protocol
from mdepth_fast.inference import evaluate
from mdepth_fast.models.base import DepthModel


class Brightness(DepthModel):
    """The mean of the colours is the depth in 10 m, or the inverse depth up to scale and shift."""

    multiple = 1

    def __init__(self, affine: bool = False) -> None:
        super().__init__(unit=None if affine else "m", input_size=None)
        self.factor = torch.nn.Parameter(torch.tensor(10.0))
        self.affine = affine
        self.seen: list[tuple[int, ...]] = []

    @property
    def kind(self) -> Any:
        return "affine_inverse" if self.affine else "metric"

    def infer(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape[-2:]))
        grey = images.mean(1, keepdim=True)
        return 0.2 / grey - 0.3 if self.affine else self.factor * grey


def dataset(height: int = 24, width: int = 32) -> list[dict[str, Any]]:
    """Images whose brightness is their depth in 10 m; a third of it is unknown."""
    samples = []
    for index in range(3):
        target = torch.randint(20, 255, (1, height, width), generator=torch.Generator().manual_seed(index))
        depth = target / 25.5
        depth[:, ::3] = 0
        target = target.to(torch.uint8).expand(3, -1, -1).contiguous()
        samples.append({"target": target, "depth": depth, "name": f"frame {index}"})
    return samples


def test_depth_as_the_network_gives_it() -> None:
    evaluator = Evaluator(Protocol("plain"))
    evaluate(Brightness(), dataset(), evaluator)
    summary = evaluator.compute()
    assert summary["images"] == 3 and summary["abs_rel"] == pytest.approx(0, abs=1e-6)


def test_inverse_depth_is_aligned_or_refused() -> None:
    aligned = Protocol("aligned", alignment="lsq_disparity")
    evaluator = Evaluator(aligned)
    evaluate(Brightness(affine=True), dataset(), evaluator)
    assert evaluator.compute()["abs_rel"] == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match=r"protocol: expected one that aligns inverse depth.* nyu_affine; got plain"):
        evaluate(Brightness(affine=True), dataset(), Evaluator(replace(aligned, name="plain", alignment="none")))


def test_a_prescribed_size_is_reached_by_the_networks_own_hooks() -> None:
    evaluator, net = Evaluator(Protocol("small", size=(12, 16), resize="nearest")), Brightness()
    resized: list[tuple[int, int]] = []

    def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
        resized.append(size)
        return images[..., 1::2, 1::2]  # what `ground_truth` picks

    net.resize = resize  # type: ignore[method-assign]
    evaluate(net, dataset(), evaluator)
    assert resized == [(12, 16)] * 3 and set(net.seen) == {(12, 16)}
    assert evaluator.compute()["images"] == 3 and evaluator.compute()["abs_rel"] == pytest.approx(0, abs=1e-6)
