"""Monodepth (2017): published sizes and names, shapes, depth from disparity."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mdepth_fast.models import MonodepthResNet50, MonodepthVGG, create_model, load_checkpoint
from mdepth_fast.weights import convert_content, read_content

NETS = [(MonodepthVGG, 128), (MonodepthResNet50, 64)]


def parameters(name: str, **options: int) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name, **options).parameters())


def test_parameter_counts() -> None:
    """31 million with the VGG-like encoder, says the paper."""
    assert parameters("monodepth_vgg") == 31_600_072
    assert parameters("monodepth_resnet50") == 58_452_008
    # A second map: one output more in four heads, one input more where three of them go in.
    heads = sum(9 * inputs + 1 for inputs in (16, 32, 64, 128))
    skips = sum(9 * outputs for outputs in (16, 32, 64))
    assert parameters("monodepth_vgg") - parameters("monodepth_vgg", maps=1) == heads + skips


def test_strides_of_the_resnet_are_in_the_last_block_of_a_stage() -> None:
    with torch.device("meta"):
        net = MonodepthResNet50()
    strides = [[block.conv.stride[0] for block in stage] for stage in net.encoder.stages]
    assert strides == [[1, 1, 2], [1, 1, 1, 2], [1, 1, 1, 1, 1, 2], [1, 1, 2]]
    assert all(block.shortcut.stride == block.conv.stride for stage in net.encoder.stages for block in stage)


@pytest.mark.parametrize(("kind", "multiple"), NETS)
@pytest.mark.parametrize("maps", [1, 2])
def test_four_scales_of_shares_of_the_width(kind: type, multiple: int, maps: int) -> None:
    net = kind(base=4, maps=maps, max_disparity=0.2)
    found = net(torch.rand(2, 3, multiple, 2 * multiple))
    assert [tuple(one.shape) for one in found] == [(2, maps, multiple >> s, 2 * multiple >> s) for s in range(4)]
    assert all(one.min() > 0 and one.max() < 0.2 for one in found)
    sum(one.mean() for one in found).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    with pytest.raises(ValueError, match=f"multiples of {multiple}, got {multiple}x{multiple + 32}"):
        net(torch.rand(1, 3, multiple, multiple + 32))


def published(net: MonodepthVGG) -> dict[str, torch.Tensor]:
    """The variables in TensorFlow's order of creation, as the paper's figures and table of layers give it."""
    state, content = net.state_dict(), {}
    encoder = [f"encoder.pairs.{n}.{m}" for n in range(7) for m in (0, 2)]
    decoder = ["levels.0.up", "levels.0.merge", "levels.1.up", "levels.1.merge", "levels.2.up", "levels.2.merge"]
    decoder += [f"levels.{n}.{part}" for n in range(3, 7) for part in ("up", "merge", "head")]
    for part, names in (("encoder", encoder), ("decoder", decoder)):
        for n, name in enumerate(names):
            layer = f"model/{part}/Conv_{n}" if n else f"model/{part}/Conv"
            content[f"{layer}/weights"] = state[f"{name}.weight"].permute(2, 3, 1, 0).contiguous()
            content[f"{layer}/biases"] = state[f"{name}.bias"]
            content[f"{layer}/weights/Adam_1"] = torch.zeros(1)
    return {**content, "beta1_power": torch.zeros(()), "global_step": torch.zeros((), dtype=torch.int64)}


def test_reads_the_published_variables(tmp_path) -> None:
    with torch.device("meta"):
        net = MonodepthVGG()
        content = published(net)
    assert sum(value.numel() for key, value in content.items() if key.endswith(("weights", "biases"))) == 31_600_072
    name, options, state = convert_content(content, tmp_path / "model.npz", "monodepth_vgg")
    assert (name, options) == ("monodepth_vgg", {})
    assert state.keys() == net.state_dict().keys()
    path = tmp_path / "model.npz"
    small = MonodepthVGG(base=2)
    np.savez(path, **{key: value.numpy() for key, value in published(small).items()})
    other = MonodepthVGG(base=2)
    load_checkpoint(other, path)
    images = torch.rand(1, 3, 128, 128)
    assert torch.equal(other(images)[0], small(images)[0])
    broken = read_content(path)
    del broken["model/decoder/Conv_17/biases"]
    np.savez(path, **{key: value.numpy() for key, value in broken.items()})
    with pytest.raises(
        ValueError, match=r"model\.npz: does not fit the model: 1 keys missing \(levels\.6\.head\.bias\)"
    ):
        load_checkpoint(other, path)


def test_depth_from_the_left_disparity() -> None:
    camera = {"focal": 0.58, "baseline": 0.54, "offset": 0.01}
    net, images = MonodepthVGG(base=4, input_size=(128, 256), **camera), torch.rand(2, 3, 128, 256)
    disparity = net(images)[0][:, :1].detach()
    prediction = net.predict(images)
    assert (prediction.kind, prediction.unit) == ("metric", "m")
    torch.testing.assert_close(prediction.depth, 0.58 * 0.54 / (disparity + 0.01))
    # Shares of the width: at another size it is the same map, resized.
    large = F.interpolate(images, (200, 300), mode="nearest")
    assert net.predict(large, size=(128, 256)).depth.shape == (2, 1, 200, 300)
    # Another focal length, in pixels of the images at hand.
    K = torch.tensor([[150.0, 0, 128], [0, 150, 64], [0, 0, 1]])
    torch.testing.assert_close(net.predict(images, K=K).depth, 150 / 256 * 0.54 / (disparity + 0.01))
    torch.testing.assert_close(net.predict(images, K=K.expand(2, 3, 3)).depth, net.predict(images, K=K).depth)


def test_without_a_baseline_depth_is_relative() -> None:
    net = MonodepthVGG(base=4, input_size=(128, 128))
    images = torch.rand(1, 3, 128, 128)
    prediction = net.predict(images, K=torch.eye(3))
    assert (prediction.kind, prediction.unit) == ("relative", None)
    torch.testing.assert_close(prediction.depth, 1 / net(images)[0][:, :1].detach())
    # Behind infinity, where principal points are apart: as far as can be told, and finite.
    far = MonodepthVGG(base=4, focal=1.0, baseline=1.0, offset=-0.5).predict(images).depth
    assert far.isfinite().all() and far.min() > 1e5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"focal": 0.58}, "focal, baseline: expected both or neither, got 0.58 and None"),
        ({"focal": 0.58, "baseline": -1.0}, r"baseline: expected a positive number, got -1\.0"),
        ({"max_disparity": 0.0}, r"max_disparity: expected a positive number, got 0\.0"),
        ({"maps": 3}, "maps: expected 1 or 2, got 3"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MonodepthVGG(base=2, **options)
