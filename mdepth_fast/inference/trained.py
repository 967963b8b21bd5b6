"""Trained networks: reading them back, and measuring them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mdepth_fast.inference.writers import DepthMap
from mdepth_fast.models import DepthModel, Model, create_model, load_checkpoint
from mdepth_fast.models.monodepth2 import PUBLISHED_RANGE, STEREO_UNIT
from mdepth_fast.models.resnet import VARIANTS, Bottleneck
from mdepth_fast.systems import Config, SelfSupervisedSystem, system_for, system_of
from mdepth_fast.systems.depth import evaluate_sample, predict_sample
from mdepth_fast.systems.saved import first_not_finite, read_checkpoint
from mdepth_fast.weights import create_converted
from mdepth_fast.weights.checkpoint import create_published
from mdepth_fast.weights.download import Progress
from mdepth_fast.weights.hub import WEIGHTS, is_on_hub
from mdepth_fast.weights.match import peeled
from mdepth_fast.weights.registry import fetch, find, is_published

__all__ = ["Trained", "evaluate", "evaluate_sample", "load_system", "load_trained", "predict_image", "predict_sample"]


@dataclass
class Trained:
    """A network in evaluation mode, its `input_size` the one it was trained at, and its run where known."""

    net: Any
    config: Any

    @property
    def system(self) -> Any:
        """The class of the system that it belongs to."""
        return system_for(self.net) if self.config is None else system_of(self.config)


def load_trained(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    checkpoint: str | None = None,
    accept_licence: str | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Reads a checkpoint or run folder of `mdepth-fast train`, a file of `mdepth-fast convert` or `netadapt`, a folder
    of `save_pretrained`, a repository `hub:user/repo` of the Hugging Face Hub, or a folder with Monodepth2's
    encoder.pth and depth.pth. Published weights go by their name, `mdepth-fast weights list`.

    checkpoint: of a run folder, "last" (the default) or "best": see `trainer.monitor`. ValueError where `path` is no
    run folder and has no such choice. accept_licence, progress: for published weights, see `weights.registry.fetch`.

    The published stereo models predict metres: their depth range is stretched by the 5.4 m that their unit stands for.
    ValueError where weights are not finite.
    """
    trained = _load(path, device, checkpoint, accept_licence, progress)
    if name := first_not_finite(trained.net.state_dict()):
        raise ValueError(f"{path}: expected finite weights, got NaN or infinity in {name}: the training has diverged")
    return trained


def _load(
    path: str | Path,
    device: str | torch.device,
    checkpoint: str | None,
    accept_licence: str | None,
    progress: Progress | None,
) -> Trained:
    if is_published(path):
        if checkpoint:
            raise ValueError(f"checkpoint: expected a run folder to choose {checkpoint} from, got {path}")
        made = create_published(find(str(path)), accept_licence=accept_licence, progress=progress)
        return Trained(made.to(device).eval(), None)
    if _is_pretrained(path):
        if checkpoint:
            raise ValueError(f"checkpoint: expected a run folder to choose {checkpoint} from, got {path}")
        return Trained(Model.from_pretrained(path).to(device), None)
    path, published = _find(path, checkpoint)
    if published:
        return _load_published(path, device)
    if path.suffix == ".safetensors":
        return Trained(create_converted(path).to(device).eval(), None)
    config, saved, weights = read_run(path)
    net = system_of(config).restore(config, saved, weights)
    return Trained(net.to(device).eval(), config)


@torch.inference_mode()
def predict_image(
    net: DepthModel,
    image: NDArray[np.uint8],
    *,
    K: NDArray[np.float64] | None = None,
    size: tuple[int, int] | None = None,
) -> DepthMap:
    """The map of one image, RGB uint8 (H, W, 3), which it keeps.

    K: camera matrix (3, 3) in pixels of the image, which a network that takes it is given. size: see
    `DepthModel.predict`.
    """
    device = next(net.parameters()).device
    images = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255
    options: dict[str, Any] = (
        {"K": torch.from_numpy(K).float().to(device)} if K is not None and net.takes_intrinsics else {}
    )
    return DepthMap.of(net.predict(images, size=size, **options), K=K, image=image)


def load_system(path: str | Path, device: str | torch.device = "cpu", *, checkpoint: str | None = None) -> Any:
    """The whole system that a checkpoint holds, with its pose network, in evaluation mode.

    `path` is a checkpoint or run folder of a self-supervised system, or a folder with Monodepth2's encoder.pth,
    depth.pth, pose_encoder.pth and pose.pth, or the name of such published weights. checkpoint: see `load_trained`.
    ValueError for anything else.
    """
    path = fetch(find(str(path)).name) if is_published(path) else path
    if _is_pretrained(path):
        raise ValueError(f"{path}: expected a run or a checkpoint, got one network, of save_pretrained")
    path, published = _find(path, checkpoint)
    if published:
        return _published_system(path).to(device).eval()
    if path.suffix == ".safetensors":
        raise ValueError(f"{path}: expected a run or a checkpoint, got a converted file, which holds one network")
    config, saved, weights = read_run(path)
    system = system_of(config)
    if not issubclass(system, SelfSupervisedSystem):
        raise ValueError(f"{path}: expected a self-supervised system, got {system.name}, which predicts no poses")
    return system.restore_system(config, saved, weights).to(device).eval()


def _is_pretrained(path: str | Path) -> bool:
    return is_on_hub(path) or (Path(path) / WEIGHTS).is_file()


def _find(path: str | Path, checkpoint: str | None) -> tuple[Path, bool]:
    """The file that `path` and `checkpoint` name, or a folder of published weights and True."""
    path = Path(path)
    published = path.is_dir() and (path / "encoder.pth").is_file()
    if checkpoint not in (None, "last", "best"):
        raise ValueError(f"checkpoint: expected last or best, got {checkpoint!r}")
    if checkpoint and (published or not path.is_dir()):
        raise ValueError(f"checkpoint: expected a run folder to choose {checkpoint} from, got {path}")
    if path.is_dir() and not published:
        path = path / f"{checkpoint or 'last'}.ckpt"
    return path, published


def find_run(path: str | Path, checkpoint: str | None = None) -> Path | None:
    """The checkpoint of `mdepth-fast train` that `path` and `checkpoint` name, None for weights of another kind."""
    if _is_pretrained(path) or is_published(path):
        return None
    path, published = _find(path, checkpoint)
    return None if published or path.suffix == ".safetensors" else path


def read_run(path: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Configuration, extra state and weights of a checkpoint."""
    values = read_checkpoint(path)
    if "mdepth_fast" not in values:
        raise ValueError(
            f"{path}: expected a checkpoint of `mdepth-fast train`, got keys {sorted(values)[:5]}; "
            "published weights are made readable by `mdepth-fast convert`"
        )
    saved = values["mdepth_fast"]
    return Config.from_dict(saved["config"]), saved, values["state_dict"]


def _layers(encoder: Mapping[str, Any]) -> int:
    """Of a published ResNet: told by its kind of block and their number in the third stage."""
    bottleneck = "encoder.layer1.0.conv3.weight" in encoder
    blocks = sum(f"encoder.layer3.{number}.conv1.weight" in encoder for number in range(40))
    return next(
        (n for n, (block, counts) in VARIANTS.items() if (block is Bottleneck, counts[2]) == (bottleneck, blocks)), 18
    )


def _scales(depth: Mapping[str, Any]) -> dict[str, Any]:
    """Of a published depth decoder, as an option where it has not all four: told by the channels of its heads."""
    heads = [depth.get(f"decoder.{number}.conv.weight") for number in range(10, 14)]
    widths = [head.shape[1] for head in heads if isinstance(head, Tensor) and head.dim() == 4]
    scales = tuple(_HEADS.index(width) for width in widths if width in _HEADS)
    return {"scales": scales} if scales and scales != (0, 1, 2, 3) else {}


_HEADS = (16, 32, 64, 128)  # input channels of the head of each scale


def _published_content(path: Path) -> Mapping[str, Any]:
    """A file of a published folder without what has been put around its tensors."""
    content = list(peeled(read_checkpoint(path)))
    return next((one for one in content if _FIRST.keys() & one.keys()), content[0])


_FIRST = dict.fromkeys(("encoder.conv1.weight", "decoder.0.conv.conv.weight", "pose_conv.weight", "net.0.weight"))


def _load_published(folder: Path, device: str | torch.device) -> Trained:
    encoder, depth = (_published_content(folder / f"{name}.pth") for name in ("encoder", "depth"))
    stereo = bool(encoder.get("use_stereo", False))
    low, high = (limit * (STEREO_UNIT if stereo else 1.0) for limit in PUBLISHED_RANGE)
    name = f"monodepth2_resnet{_layers(encoder)}"
    net = create_model(name, min_depth=low, max_depth=high, unit="m" if stereo else None, **_scales(depth))
    load_checkpoint(net, folder)
    return Trained(net.to(device).eval(), None)


def _published_system(folder: Path) -> SelfSupervisedSystem[Any]:
    """Monodepth2 with the published depth and pose networks of a folder."""
    depth_encoder = _published_content(folder / "encoder.pth")
    depth = f"monodepth2_resnet{_layers(depth_encoder)}"
    pose = _published_content(folder / "pose.pth")
    if (folder / "pose_encoder.pth").is_file():
        encoder = _published_content(folder / "pose_encoder.pth")
        name, images = f"posenet_resnet{_layers(encoder)}", encoder.get("encoder.conv1.weight")
        frames = 2 if images is None else images.shape[1] // 3
    elif "pose_conv.weight" in pose:
        name, frames = "posecnn", 1 + pose["pose_conv.weight"].shape[0] // 6
    else:
        name, frames = "posenet_shared", 1 + pose["net.3.weight"].shape[0] // 6 if "net.3.weight" in pose else 2
    if frames not in (2, 3):
        raise ValueError(f"{folder}: expected a pose network of 2 or 3 frames, got one of {frames}")
    sections: dict[str, Any] = {"model": {"name": depth}, "pose": {"name": name}}
    sections["pose"]["input"] = "pairs" if frames == 2 else "all"
    for section in sections.values():
        section["weights"] = str(folder)
    for name, value in _scales(_published_content(folder / "depth.pth")).items():
        sections["model"][name] = list(value)
    size = {key: int(depth_encoder[key]) for key in ("height", "width") if key in depth_encoder}
    config = Config.from_dict({"system": "monodepth2", "data": size, **sections})
    system: SelfSupervisedSystem[Any] = system_of(config).create(config, SimpleNamespace(sources=(-1, 1)))
    return system


def evaluate(
    net: Any,
    dataset: Any,
    evaluator: Any,
    *,
    workers: int = 0,
    track: Callable[[Any], Any] = lambda loader: loader,
    sample: Callable[[Any, dict[str, Any], Any], None] = evaluate_sample,
) -> None:
    """Feeds an evaluator with what `net` predicts for every sample of `dataset`.

    Resizing of the prediction and flip post-processing are as the evaluator's protocol says. `track` may wrap the
    loader in a progress bar; `sample` is the `evaluate_sample` of the data's system. ValueError for inverse depth that
    the protocol does not align.
    """
    for batch in track(DataLoader(dataset, num_workers=workers)):
        sample(net, batch, evaluator)
