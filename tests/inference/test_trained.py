"""What `evaluate` hands to an evaluator, and what panels show, by the kind of the prediction."""

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import Normalize
from torch import Tensor

from mdepth_fast.evaluation import Evaluator, Protocol
from mdepth_fast.inference import evaluate, load_trained
from mdepth_fast.kinds import KINDS, UNITS, Kind, describe, is_inverse
from mdepth_fast.models import create_model
from mdepth_fast.models.base import DepthModel
from mdepth_fast.systems.depth import DepthSystem, Preview
from mdepth_fast.weights import write_converted


class Brightness(DepthModel):
    """The mean of the colours is the depth in 10 m; it is predicted as the kind says."""

    multiple = 1

    def __init__(self, kind: Kind = "metric") -> None:
        super().__init__(unit=UNITS[kind], input_size=None)
        self.factor = torch.nn.Parameter(torch.tensor(10.0))
        self._kind = kind
        self.seen: list[tuple[int, ...]] = []

    @property
    def kind(self) -> Kind:
        return self._kind

    def infer(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape[-2:]))
        grey = images.mean(1, keepdim=True)
        if is_inverse(self.kind):
            return 0.2 / grey - (0.3 if self.kind == "affine_inverse" else 0)
        return (3 if self.kind == "relative" else 1) * self.factor * grey


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
    evaluate(Brightness("affine_inverse"), dataset(), evaluator)
    assert evaluator.compute()["abs_rel"] == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match=r"protocol: expected one that aligns inverse depth.* nyu_affine; got plain"):
        evaluate(Brightness("affine_inverse"), dataset(), Evaluator(replace(aligned, name="plain", alignment="none")))


@pytest.mark.parametrize("kind", ["relative", "disparity"])
def test_depth_without_a_unit_needs_an_alignment_or_a_scale(kind: Kind) -> None:
    plain = Protocol("plain", resize="depth")
    for protocol in (replace(plain, alignment="median"), replace(plain, scale=1 / 3 if kind == "relative" else 2.0)):
        evaluator = Evaluator(protocol)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluate(Brightness(kind), dataset(), evaluator)
        assert evaluator.compute()["abs_rel"] == pytest.approx(0, abs=1e-5)
    with pytest.warns(UserWarning, match=f"protocol plain compares {describe(kind)} with metres as it is"):
        evaluate(Brightness(kind), dataset(), Evaluator(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_panels_show_near_bright(kind: Kind) -> None:
    net, image = Brightness(kind), torch.linspace(0.1, 1, 12).expand(3, 4, 12)
    system: Any = SimpleNamespace(
        depth_net=net, preview=lambda sample: Preview(image, net.predict(sample).depth[0, 0], None)
    )
    cell = DepthSystem.panel(system, image)[1]
    assert cell.unit == {"metric": "depth (m)", "relative": "depth (relative)"}.get(kind, describe(kind))
    brightness = colormaps[cell.colormap](Normalize()(cell.picture))[..., :3].sum(-1)
    assert brightness[0, 0] > 2.5 and brightness[0, -1] < 0.1  # 1 m, and 10 m


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


def test_weights_of_a_diverged_run_are_refused(tmp_path: Path) -> None:
    state = create_model("posecnn").state_dict()
    state["pose_conv.bias"][2] = float("nan")
    write_converted(tmp_path / "net.safetensors", "posecnn", {}, state, source="a run")
    with pytest.raises(
        ValueError, match=r"net\.safetensors: expected finite weights, got NaN or infinity in pose_conv\.bias"
    ):
        load_trained(tmp_path / "net.safetensors")
