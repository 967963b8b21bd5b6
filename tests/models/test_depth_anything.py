"""Depth Anything V2: sizes of the published nets, parity with transformers, the files it reads, what `predict` does."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from plain_depth_anything import randomise, theirs
from safetensors.torch import load_file, save_file
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, DPTImageProcessorPil

from mdepth_fast.cli import main
from mdepth_fast.inference import load_trained
from mdepth_fast.models import DepthAnythingV2, DPTGeometry, create_model, load_checkpoint
from mdepth_fast.models.depth_anything import GEOMETRIES
from mdepth_fast.models.winograd import WinogradConv2d

# Reduced in depth and width; kinds of layers as published.
SMALL = DPTGeometry(48, 4, 3, (0, 1, 2, 3), (12, 24, 36, 48), features=24)
DEAD = ("pretrained.mask_token", "depth_head.scratch.refinenet4.resConfUnit1.")


def small(**options):
    net = randomise(DepthAnythingV2(SMALL, **options)).eval()
    torch.nn.init.constant_(net.depth_head.scratch.output_conv2[2].bias, 0.0 if net.max_depth else 6.0)
    return net


def meta(name, **options):
    with torch.device("meta"):
        return create_model(name, **options)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("size", "total", "entries"), [("small", 24_785_089, 239), ("base", 97_470_785, 239), ("large", 335_315_649, 407)]
)
def test_parameters(size, total, entries):
    net = meta(f"depth_anything_v2_{size}")
    assert count(net) == total and len(net.state_dict()) == entries
    assert (net.kind, net.unit) == ("affine_inverse", None)
    if size == "small":
        assert count(net.pretrained) == 22_056_576 and count(net.depth_head) == 2_728_513
    for scene, max_depth in (("indoor", 20), ("outdoor", 80)):
        metric = meta(f"depth_anything_v2_{size}_{scene}")
        assert (metric.kind, metric.unit, metric.max_depth) == ("metric", "m", max_depth)
        assert metric.state_dict().keys() == net.state_dict().keys()


def test_published_keys():
    state = meta("depth_anything_v2_large").state_dict()
    assert {
        "pretrained.cls_token",
        "pretrained.mask_token",
        "pretrained.patch_embed.proj.bias",
        "pretrained.blocks.23.attn.qkv.weight",
        "pretrained.blocks.0.ls1.gamma",
        "pretrained.blocks.0.mlp.fc2.bias",
        "pretrained.norm.weight",
        "depth_head.projects.3.weight",
        "depth_head.resize_layers.1.bias",
        "depth_head.scratch.layer4_rn.weight",
        "depth_head.scratch.refinenet4.resConfUnit1.conv2.bias",
        "depth_head.scratch.refinenet1.out_conv.weight",
        "depth_head.scratch.output_conv1.weight",
        "depth_head.scratch.output_conv2.2.bias",
    } < state.keys()
    assert state["pretrained.pos_embed"].shape == (1, 1370, 1024)
    assert state["depth_head.resize_layers.0.weight"].shape == (256, 256, 4, 4)
    assert not any(key.startswith("depth_head.resize_layers.2") for key in state)


@pytest.mark.parametrize("size", list(GEOMETRIES))
def test_key_map_is_a_bijection(size):
    net = meta(f"depth_anything_v2_{size}")
    with torch.device("meta"):
        other = theirs(net.geometry)
    got = net.transformers_state_dict()
    expected = {name: value.shape for name, value in net.translate(other.state_dict()).items()}
    assert expected == {name: value.shape for name, value in net.state_dict().items()}
    assert {name: value.shape for name, value in net.translate(got).items()} == expected
    assert len(got) == len(other.state_dict()) == sum(map(len, net.transformers_keys().values()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as transformers publishes it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("theirs")
    other = randomise(theirs(SMALL))
    torch.nn.init.constant_(other.head.conv3.bias, 6.0)
    other.save_pretrained(path)
    return path


@pytest.mark.parametrize("max_depth", [None, 20.0])
@torch.no_grad()
def test_parity_with_transformers(folder, max_depth):
    """Square images of the learned size, larger and smaller ones, with odd and even numbers of patches."""
    other = theirs(SMALL, max_depth)
    net = DepthAnythingV2(SMALL, max_depth=max_depth, position_offset=None).eval()
    load_checkpoint(net, folder / "model.safetensors")
    other.load_state_dict(DepthAnythingForDepthEstimation.from_pretrained(folder).state_dict())
    if max_depth:  # in the middle of the sigmoid: at its lower end an absolute error becomes a relative one
        for layer in (other.head.conv3, net.depth_head.scratch.output_conv2[2]):
            layer.bias.zero_()
            layer.weight.mul_(0.1)
    for size in ((518, 518), (126, 140), (252, 336), (70, 14)):
        x = torch.rand(1 if size[0] > 500 else 2, 3, *size)
        got, expected = net(x)[:, 0], other(normalised(x)).predicted_depth
        assert expected.min() > 0 and expected.std() > 1e-3 * expected.mean()
        assert difference(got, expected) <= 1e-5, size


def normalised(x):
    return (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def difference(got, expected):
    return ((got - expected).abs() / expected.abs().clamp(min=expected.abs().mean() * 1e-3)).max().item()


def test_weights_travel_to_transformers(folder, tmp_path):
    """From a file of ours to one that `from_pretrained` of every version reads, and back, without a changed value."""
    net = small()
    config = DepthAnythingConfig.from_pretrained(folder)
    config.save_pretrained(tmp_path)
    state = {name: value.contiguous() for name, value in net.transformers_state_dict().items()}
    assert state.keys() == load_file(folder / "model.safetensors").keys()
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    other, info = DepthAnythingForDepthEstimation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for back in (net.translate(other.state_dict()), net.translate(state)):
        assert all(torch.equal(value, back[name]) for name, value in net.state_dict().items())


@torch.no_grad()
def test_positions_as_published():
    """Places are scaled by (size + 0.1) / 37, which differs from the ratio of the sizes a little, and not at 518."""
    net = small()
    table = net.pretrained.pos_embed[:, 1:].reshape(1, 37, 37, 48).permute(0, 3, 1, 2)
    expected = F.interpolate(table, scale_factor=(18.1 / 37, 24.1 / 37), mode="bicubic")
    got = net.pretrained.positions((18, 24))
    assert torch.equal(got[:, 1:].unflatten(1, (18, 24)), expected.permute(0, 2, 3, 1))
    assert torch.equal(got[:, 0], net.pretrained.pos_embed[:, 0])
    assert net.pretrained.positions((37, 37)) is net.pretrained.pos_embed
    plain = small(position_offset=None)
    plain.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 252, 336)
    assert 1e-5 < difference(net(x), plain(x)) < 0.1


@pytest.mark.parametrize("form", ["plain", "training", "transformers"])
def test_published_files(tmp_path, form):
    source, net = small(), small()
    state = source.state_dict()
    if form == "training":  # as metric_depth/train.py saves it
        state = {"model": {f"module.{key}": value for key, value in state.items()}, "optimizer": {}, "epoch": 3}
    elif form == "transformers":
        state = source.transformers_state_dict()
    torch.save(state, tmp_path / "net.pth")
    load_checkpoint(net, tmp_path / "net.pth")
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in source.state_dict().items())


def test_a_file_that_does_not_fit(tmp_path):
    state = dict(small().transformers_state_dict())
    del state["backbone.encoder.layer.1.attention.attention.key.bias"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(
        ValueError, match=r"net\.pth: does not fit .*pretrained\.blocks\.1\.attn\.qkv\.bias.*query\.bias"
    ):
        load_checkpoint(small(), tmp_path / "net.pth")


def test_from_a_published_file_to_a_prediction(tmp_path, capsys):
    """The file does not say whether its network is metric: `convert` must be told, and `predict` knows it then."""
    net = create_model("depth_anything_v2_small")
    torch.save(net.state_dict(), tmp_path / "depth_anything_v2_vits.pth")
    Image.new("RGB", (140, 98), (90, 120, 150)).save(tmp_path / "photo.png")
    source, target = str(tmp_path / "depth_anything_v2_vits.pth"), str(tmp_path / "net.safetensors")
    assert main(["convert", source, target])
    assert "depth_anything_v2_small, depth_anything_v2_small_indoor" in capsys.readouterr().err
    assert main(["convert", source, target, "--model", "depth_anything_v2_small_indoor"]) == 0
    read = load_trained(target).net
    assert (read.kind, read.max_depth) == ("metric", 20)
    words = ["--output", str(tmp_path / "out"), "--size", "98x140", "--device", "cpu", "--no-color"]
    assert main(["predict", target, str(tmp_path / "photo.png"), *words]) == 0
    assert "metric depth" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["dinov2", "relative", "transformers"])
def test_weights_of_the_encoder_alone(tmp_path, form):
    source = small()
    states = {
        "dinov2": source.pretrained.state_dict(),
        "relative": source.state_dict(),
        "transformers": source.transformers_state_dict(),
    }
    torch.save(states[form], tmp_path / "encoder.pth")
    net = DepthAnythingV2(SMALL, max_depth=80, encoder_weights=tmp_path / "encoder.pth")
    own = net.pretrained.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in source.pretrained.state_dict().items())


def processor_for(side):
    """transformers' image processor, configured as published, on PIL images."""
    return DPTImageProcessorPil(
        size={"height": side, "width": side},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


@pytest.mark.parametrize(
    ("image", "expected", "same_as_transformers"),
    [
        ((518, 518), (518, 518), True),
        ((480, 640), (518, 686), True),
        ((640, 480), (686, 518), True),
        ((1080, 1920), (518, 924), True),
        ((375, 1242), (518, 1722), True),
        ((518, 525), (518, 532), True),  # 37.5 patches: to even
        ((518, 539), (518, 532), True),  # 38.5 patches: to even
        ((200, 300), (518, 784), False),  # it would scale the longer side to 518, as the least change
    ],
)
def test_size_at_which_the_net_runs(image, expected, same_as_transformers):
    assert meta("depth_anything_v2_small").network_size(*image) == expected
    processor = processor_for(518)
    image = torch.rand(3, *image).mul(255).byte()
    assert (processor(image, return_tensors="pt")["pixel_values"].shape[-2:] == expected) == same_as_transformers


def test_fixed_size():
    assert DepthAnythingV2(SMALL, input_size=(70, 98)).network_size(480, 640) == (70, 98)


@torch.no_grad()
def test_what_predict_feeds_the_net():
    """Nearly what transformers' processor makes of a photograph, which has other bicubic weights and 8 bits."""
    y, x = torch.meshgrid(torch.arange(120.0), torch.arange(160.0), indexing="ij")
    image = torch.stack([127 + 100 * (y / 17).sin(), 127 + 100 * (x / 23).cos(), (x + y) / 2]).byte()
    processor = processor_for(126)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    net, seen = small(target_size=(126, 126)), []
    net.pretrained.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    prediction = net.predict(image.float() / 255)
    assert seen[0].shape == expected.shape == (1, 3, 126, 168)
    assert (seen[0] - expected).abs().max() < 0.03  # 1.7 of 255 levels
    assert (prediction.kind, prediction.unit) == ("affine_inverse", None)
    # Back to the image with the corners aligned, as published.
    values = net(F.interpolate(image[None].float() / 255, (126, 168), mode="bicubic"))
    torch.testing.assert_close(prediction.depth, F.interpolate(values, (120, 160), mode="bilinear", align_corners=True))


@torch.no_grad()
def test_optimised_for_inference():
    for net in (small(target_size=(70, 70)), small(max_depth=20.0, target_size=(70, 70))):
        net.train()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        fast, x = net.optimize_for_inference(), torch.rand(2, 3, 70, 98)
        assert not fast.training and net.training and not any(p.requires_grad for p in fast.parameters())
        assert not any(isinstance(module, WinogradConv2d) for module in fast.modules())  # slower with few channels
        assert not any("ls1" in key or "ls2" in key for key in fast.state_dict())
        assert difference(fast(x), net.eval()(x)) < 1e-4
        assert difference(fast.predict(x[:, :, :60]).depth, net.predict(x[:, :, :60]).depth) < 1e-4
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_gradients():
    """Everything that is used learns, from the initial weights, and inference gives the numbers of training."""
    for options in ({}, {"max_depth": 20.0}):
        net, x = DepthAnythingV2(SMALL, **options).train(), torch.rand(1, 3, 70, 98)
        output = net(x)
        output.log().mean().backward()
        without = {key for key, p in net.named_parameters() if p.grad is None}
        assert without == {key for key, _ in net.named_parameters() if key.startswith(DEAD)}
        assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters() if p.grad is not None)
        with torch.no_grad():
            torch.testing.assert_close(net(x), output.detach())


@pytest.mark.parametrize("training", [True, False])
def test_half_precision(training):
    net, x = small(max_depth=20.0).train(training), torch.rand(1, 3, 70, 98)
    with torch.set_grad_enabled(training):
        exact = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = net(x)
        half = net.bfloat16()(x.bfloat16())
    for output in (mixed, half):
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, exact, rtol=0.05, atol=0)


def test_parameter_groups():
    net = meta("depth_anything_v2_small")
    encoder, head = net.parameter_groups(5e-5)
    assert (encoder["lr"], head["lr"]) == (pytest.approx(5e-6), 5e-5)
    assert sum(p.numel() for p in encoder["params"]) == 22_056_576
    assert sum(p.numel() for p in head["params"]) == 2_728_513


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": "giant"}, r"geometry: expected one of small, base, large or a DPTGeometry, got 'giant'"),
        ({"max_depth": 0.0}, r"max_depth: expected a positive number of metres, got 0\.0"),
        ({"geometry": DPTGeometry(48, 4, 3, (0, 1, 3), (12, 24, 36, 48))}, r"taps: expected 4 ascending blocks"),
        ({"geometry": DPTGeometry(48, 4, 3, (2, 3), (8, 16, 48, 48), trunk=(1, 1, 1), trunk_width=2)}, "trunk: expect"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        DepthAnythingV2(**options)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(1, 3, 64, 84), ValueError, "multiples of 14, got 64x84"),
        (torch.rand(1, 3, 0, 70), ValueError, "multiples of 14, got 0x70"),
        (torch.zeros(1, 3, 70, 70, dtype=torch.uint8), TypeError, "divide by 255"),
    ],
)
def test_bad_images(images, error, message):
    with pytest.raises(error, match=message):
        small()(images)
