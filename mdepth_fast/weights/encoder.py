"""Encoders filled from the weights of an ImageNet classifier."""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mdepth_fast.weights.hub import local_file
from mdepth_fast.weights.match import CLASSIFIER, METADATA, best_fit, matched
from mdepth_fast.weights.read import read_content

__all__ = ["load_encoder_weights"]


def load_encoder_weights(encoder: nn.Module, path: str | os.PathLike[str], prefix: str = "") -> None:
    """Fill an encoder from the state dict of its ImageNet classifier, the classifier's last layer `fc` left aside.

    `path` is a file, or one of the Hugging Face Hub such as `hub:timm/resnet18.tv_in1k` (see `weights.hub`). Its keys
    are those of `encoder` behind `prefix`, or what its `translate`, where it has one, makes them. Where a ResNet takes
    n images, conv1 is repeated n times along its inputs and divided by n, so that n equal images give the activations
    of one. Errors as in `load_checkpoint`.
    """
    path = local_file(path)
    own = encoder.state_dict()
    special = getattr(encoder, "translate", lambda content: content)

    def translate(content: Mapping[str, Any]) -> Mapping[str, Any]:
        kept = {key: value for key, value in content.items() if key not in CLASSIFIER | METADATA}
        translated: Mapping[str, Any] = special({key.removeprefix(prefix): value for key, value in kept.items()})
        return translated

    content = dict(best_fit(read_content(path), own, translate=translate)[0])
    stem = content.get("conv1.weight")
    if isinstance(stem, Tensor) and stem.dim() == 4 and stem.shape[1] == 3:
        images = own["conv1.weight"].shape[1] // 3
        content["conv1.weight"] = stem.repeat(1, images, 1, 1) / images
    encoder.load_state_dict(matched(content, own, path))
