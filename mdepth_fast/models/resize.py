"""Changes the numbers of channels of an existing network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["replace_tensors", "resize_to"]


def resize_to(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Changes `model` in place to the shapes of a smaller copy's state dict, and loads that state dict.

    ValueError if the keys differ.
    """
    own = model.state_dict()
    if own.keys() != state.keys():
        different = sorted(own.keys() ^ state.keys())
        raise ValueError(
            f"state: expected the keys of {type(model).__name__}, they differ in {', '.join(different[:3])}"
        )
    replace_tensors(model, {name: value for name, value in state.items() if value.shape != own[name].shape})
    model.load_state_dict(state)
    return model


def replace_tensors(model: nn.Module, changed: Mapping[str, Tensor]) -> None:
    """Puts tensors of other shapes into a network, and tells its modules of their new sizes. Its layout stays."""
    channels_last = any(
        value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
        for value in model.parameters()
        if value.dim() == 4
    )
    depthwise = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.groups == module.in_channels > 1
    }
    for name, value in changed.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf in module._parameters:
            old = module._parameters[leaf]
            setattr(module, leaf, nn.Parameter(value.clone(), requires_grad=old is not None and old.requires_grad))
        else:
            module._buffers[leaf] = value.clone()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            first, second = module.weight.shape[:2]
            if name in depthwise:
                module.in_channels = module.out_channels = module.groups = first
            elif isinstance(module, nn.Conv2d):
                module.out_channels, module.in_channels = first, second * module.groups
            else:
                module.in_channels, module.out_channels = first, second * module.groups
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            sized = module.weight if module.weight is not None else module.running_mean
            if sized is not None:
                module.num_features = len(sized)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
