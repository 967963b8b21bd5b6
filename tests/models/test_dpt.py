"""DPT: sizes of the published nets, parity with transformers, the files it reads, what `predict` makes of it."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import BitConfig, DPTConfig, DPTForDepthEstimation

from mdepth_fast.models import DPT, DPTGeometry, create_model, load_checkpoint
from mdepth_fast.models.winograd import WinogradConv2d

# Reduced in depth and width; taps, strides and kinds of layers as published.
SMALL = {
    "large": DPTGeometry(64, 8, 4, (1, 3, 5, 7), (16, 32, 64, 64), features=32),
    "base": DPTGeometry(48, 4, 3, (0, 1, 2, 3), (12, 24, 36, 48), features=24),
    "hybrid": DPTGeometry(48, 4, 3, (2, 3), (128, 256, 48, 48), features=24, trunk=(1, 2, 2), trunk_width=32),
}
DEAD = ("pretrained.model.norm.", "scratch.refinenet4.resConfUnit1.")


def theirs(g):
    """transformers' net of the same sizes; its eps of the layer norms is 1e-12."""
    common = {
        "hidden_size": g.dim,
        "num_hidden_layers": g.depth,
        "num_attention_heads": g.heads,
        "intermediate_size": 4 * g.dim,
        "neck_hidden_sizes": list(g.widths),
        "fusion_hidden_size": g.features,
    }
    if g.trunk is None:
        return DPTForDepthEstimation(DPTConfig(backbone_out_indices=list(g.taps), **common)).eval()
    backbone = BitConfig(
        embedding_size=g.trunk_width,
        hidden_sizes=[4 * g.trunk_width, 8 * g.trunk_width, 16 * g.trunk_width],
        depths=list(g.trunk),
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=["stage1", "stage2", "stage3"],
    )
    hybrid = {
        "is_hybrid": True,
        "backbone_config": backbone,
        "backbone_featmap_shape": [1, 16 * g.trunk_width, 24, 24],
        "backbone_out_indices": [0, 1, *g.taps],
        "reassemble_factors": [1, 1, 1, 0.5],
        "neck_ignore_stages": [0, 1],
    }
    return DPTForDepthEstimation(DPTConfig(**hybrid, **common)).eval()


@torch.no_grad()
def randomise(net):
    """Weights under which every layer matters to the output, which varies and is nowhere zero."""
    for name, value in net.named_parameters():
        if value.dim() > 1:
            value.normal_(0, value[0].numel() ** -0.5)
        elif "norm" in name and name.endswith("weight"):
            value.uniform_(0.5, 1.5)
        else:
            value.normal_(0, 0.1)
    *_, last = (value for name, value in net.named_parameters() if value.shape == (1,))
    last.fill_(6)
    return net


def small(name, **options):
    return randomise(DPT(SMALL[name], **options)).eval()


def meta(name):
    with torch.device("meta"):
        return create_model(name)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "total", "backbone", "reassemble", "lateral"),
    [
        ("dpt_large", 343_030_465, 303_690_752, 22_815_232, 6_488_064),
        ("dpt_base", 110_878_081, 86_090_496, 11_433_408, 3_317_760),
        ("dpt_hybrid", 122_377_985, 98_181_952, 8_851_200, 5_308_416),
    ],
)
def test_parameters(name, total, backbone, reassemble, lateral):
    net = meta(name)
    scratch = dict(net.scratch.named_children())
    assert count(net) == total
    assert count(net.pretrained.model) == backbone
    assert count(net.pretrained) - backbone == reassemble
    assert sum(count(scratch[f"layer{n}_rn"]) for n in (1, 2, 3, 4)) == lateral
    assert sum(count(scratch[f"refinenet{n}"]) for n in (1, 2, 3, 4)) == 9_704_448
    assert count(scratch["output_conv"]) == 331_969
    for metric in ("kitti", "nyu"):
        assert meta(f"{name}_{metric}").state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("name", ["dpt_large", "dpt_base", "dpt_hybrid"])
@pytest.mark.parametrize("size", [(384, 384), (384, 512), (352, 1216)])
def test_shapes(name, size):
    """Tokens, taps and the map after the last fusion block, H x W of the image over 4, 8, 16, 32 and 2."""
    net, seen = meta(name), {}

    def watch(label, module):
        module.register_forward_hook(lambda _, inputs, output: seen.update({label: (inputs[0].shape, output.shape)}))

    watch("tokens", net.pretrained.model.blocks[-1])
    watch("head", net.scratch.output_conv[0])
    for n in range(1, 5):
        watch(n, net.scratch.get_submodule(f"layer{n}_rn"))
    output = net(torch.rand(1, 3, *size, device="meta"))
    h, w = size
    assert seen["tokens"][1] == (1, h * w // 256 + 1, net.geometry.dim)
    for n, channels in enumerate(net.geometry.widths, 1):
        assert seen[n][0] == (1, channels, h // 2 ** (n + 1), w // 2 ** (n + 1))
    assert seen["head"][0] == (1, 256, h // 2, w // 2)
    assert output.shape == (1, 1, h, w)


@pytest.mark.parametrize(("name", "published"), [("large", 258), ("base", 112), ("hybrid", 128)])
def test_multiply_accumulates(name, published):
    """Billions at 384 x 384, of the network as published and of this one."""
    net, x = meta(f"dpt_{name}"), torch.rand(1, 3, 384, 384, device="meta")
    with torch.device("meta"):
        other = theirs(net.geometry)
    macs = []
    for model in (other, net):
        with FlopCounterMode(display=False) as counter:
            model(x)
        macs.append(counter.get_total_flops() // 2)
    assert round(macs[0] / 1e9) == published
    # Saved: three quarters of the 1x1 convolutions, which come before doubling; half of the readouts, once per image.
    resized = 256**2 * 3 * (24**2 + 48**2 + 96**2 + 192**2) // 4
    readouts = len(net.geometry.taps) * net.geometry.dim**2 * (24**2 - 1)
    assert macs[0] - macs[1] == resized + readouts


@pytest.fixture(scope="module", params=list(SMALL))
def pair(request):
    """A net of transformers and ours of the same sizes, the weights copied from the first to the second."""
    torch.manual_seed(0)
    other = randomise(theirs(SMALL[request.param]))
    # transformers adds 1e-8 to the variance of a filter where timm adds eps to the deviation.
    net = DPT(SMALL[request.param], layer_norm_eps=1e-12, weight_eps=0.0).eval()
    net.load_state_dict(net.translate(other.state_dict()))
    return other, net


def close(got, expected):
    assert expected.std() > 0.1 and expected.min() > 0  # or the last ReLU would hide every difference
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(384, 384), (192, 192)])
@torch.no_grad()
def test_parity_with_transformers(pair, size):
    other, net = pair
    other.dpt.embeddings.image_size = size  # which its hybrid only compares with the size of the image
    x = torch.rand(2, 3, *size)
    close(net(x)[:, 0], other(2 * x - 1).predicted_depth)


@pytest.mark.parametrize("size", [(288, 512), (160, 96)])
@torch.no_grad()
def test_parity_with_transformers_on_oblong_images(pair, size):
    """Its net takes every image for a square, but its parts are right when they are told the size."""
    other, net = pair
    other.dpt.embeddings.image_size = size
    x = torch.rand(1, 3, *size)
    out = other.dpt(2 * x - 1, output_hidden_states=True)
    states = list(out.intermediate_activations or []) + [out.hidden_states[n + 1] for n in net.geometry.taps]
    close(net(x)[:, 0], other.head(other.neck(states, size[0] // 16, size[1] // 16)))


@pytest.mark.parametrize("name", list(SMALL))
@torch.no_grad()
def test_weights_travel_to_transformers(name):
    net = small(name)
    other = theirs(net.geometry)
    other.load_state_dict(net.transformers_state_dict())
    for module in other.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    x = torch.rand(1, 3, 384, 384)
    close(net(x)[:, 0], other(2 * x - 1).predicted_depth)


@pytest.mark.parametrize("name", ["dpt_large", "dpt_base", "dpt_hybrid"])
def test_key_map_is_a_bijection(name):
    net = meta(name)
    with torch.device("meta"):
        expected = {key: value.shape for key, value in theirs(net.geometry).state_dict().items()}
    got = net.transformers_state_dict()
    assert {key: value.shape for key, value in got.items()} == expected
    assert sum(map(len, net.transformers_keys().values())) == len(expected)  # no key twice
    assert sum(shape.numel() for shape in expected.values()) == count(net)
    back = net.translate(got)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in net.state_dict().items()}


def test_round_trip_keeps_every_value():
    net = small("hybrid")
    back = net.translate(net.transformers_state_dict())
    assert all(torch.equal(value, back[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("size", [(288, 512), (96, 320)])
@pytest.mark.parametrize("name", list(SMALL))
@torch.no_grad()
def test_oblong_images_are_not_scrambled(name, size):
    """A spot in the image changes the output there the most, wherever it is; 18 x 32 tokens are as many as 24 x 24."""
    net, (h, w) = small(name), size
    for block in net.pretrained.model.blocks:
        block.attn.proj.weight.zero_()  # random attention spreads everything everywhere
    plain = torch.full((1, 3, h, w), 0.5)
    expected = net(plain)
    assert expected.shape == (1, 1, h, w)
    for top, left in ((0, 0), (0, w - 32), (h - 32, 0), (h // 2, w // 4), (h // 4, w // 2 + 32)):
        image = plain.clone()
        image[..., top : top + 32, left : left + 32] = torch.rand(3, 32, 32)
        change = (net(image) - expected).abs()[0, 0]
        y, x = divmod(change.argmax().item(), w)
        assert top - 48 <= y < top + 80 and left - 48 <= x < left + 80, (top, left, y, x)


def test_published_keys():
    net = meta("dpt_hybrid")
    assert {
        "pretrained.model.cls_token",
        "pretrained.model.pos_embed",
        "pretrained.model.patch_embed.proj.weight",
        "pretrained.model.patch_embed.backbone.stem.conv.weight",
        "pretrained.model.patch_embed.backbone.stem.norm.bias",
        "pretrained.model.patch_embed.backbone.stages.2.blocks.8.conv3.weight",
        "pretrained.model.patch_embed.backbone.stages.1.blocks.0.downsample.norm.weight",
        "pretrained.model.blocks.11.attn.qkv.bias",
        "pretrained.model.blocks.0.mlp.fc2.weight",
        "pretrained.model.norm.weight",
        "pretrained.act_postprocess3.0.project.0.weight",
        "pretrained.act_postprocess3.3.bias",
        "pretrained.act_postprocess4.4.weight",
        "scratch.layer4_rn.weight",
        "scratch.refinenet1.out_conv.bias",
        "scratch.refinenet4.resConfUnit1.conv2.weight",
        "scratch.output_conv.4.bias",
    } < net.state_dict().keys()
    assert not any(key.startswith("pretrained.act_postprocess1") for key in net.state_dict())
    assert meta("dpt_large").state_dict()["pretrained.act_postprocess1.4.weight"].shape == (256, 256, 4, 4)


@pytest.mark.parametrize("form", ["plain", "training", "transformers"])
def test_published_files(tmp_path, form):
    source, net = small("hybrid"), small("hybrid")
    state = source.state_dict() | {
        "pretrained.model.head.weight": torch.zeros(1000, 48),
        "pretrained.model.head.bias": torch.zeros(1000),
    }
    if form == "training":
        state = {"optimizer": {"state": {}}, "model": state}
    elif form == "transformers":
        state = source.transformers_state_dict()
    torch.save(state, tmp_path / "dpt.pt")
    load_checkpoint(net, tmp_path / "dpt.pt")
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in source.state_dict().items())


def test_files_that_do_not_fit(tmp_path):
    state = small("base").transformers_state_dict()
    del state["dpt.encoder.layer.1.attention.attention.key.weight"]
    torch.save(state, tmp_path / "dpt.pt")
    with pytest.raises(ValueError, match=r"dpt\.pt: does not fit .*blocks\.1\.attn\.qkv\.weight.*query\.weight"):
        load_checkpoint(DPT(SMALL["base"]), tmp_path / "dpt.pt")
    torch.save(small("base").state_dict(), tmp_path / "dpt.pt")
    with pytest.raises(ValueError, match=r"dpt\.pt: does not fit"):
        load_checkpoint(DPT(SMALL["large"]), tmp_path / "dpt.pt")


@pytest.mark.parametrize("name", ["base", "hybrid"])
def test_imagenet_initialisation(tmp_path, name):
    """timm's files: a classifier to leave aside, and positions for 14 x 14 tokens where the image was 224."""
    source = small(name).pretrained.model
    state = source.state_dict() | {"head.weight": torch.zeros(1000, 48), "head.bias": torch.zeros(1000)}
    y, x = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    ramps = torch.stack([y, x]).repeat(24, 1, 1).flatten(1).t()
    state["pos_embed"] = torch.cat([torch.full((1, 48), -7.0), ramps])[None]
    torch.save(state, tmp_path / "vit.pth")
    net = DPT(SMALL[name], encoder_weights=tmp_path / "vit.pth").pretrained.model
    own = net.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in source.state_dict().items() if key != "pos_embed")
    grid = own["pos_embed"][0, 1:].unflatten(0, (24, 24))
    centres = ((torch.arange(24) + 0.5) * 14 / 24 - 0.5).clamp(0, 13)
    torch.testing.assert_close(grid[..., 0], centres[:, None].expand(24, 24))
    torch.testing.assert_close(grid[..., 1], centres.expand(24, 24))
    assert (own["pos_embed"][0, 0] == -7).all()
    del state["blocks.2.mlp.fc1.weight"]
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"vit\.pth: does not fit .*blocks\.2\.mlp\.fc1\.weight"):
        DPT(SMALL[name], encoder_weights=tmp_path / "vit.pth")


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("dpt_hybrid", (480, 640), (384, 512)),
        ("dpt_hybrid", (375, 1242), (384, 1280)),
        ("dpt_hybrid", (640, 480), (512, 384)),
        ("dpt_hybrid", (384, 400), (384, 384)),  # 12.5 times 32: to even
        ("dpt_hybrid", (384, 432), (384, 448)),  # 13.5 times 32: to even
        ("dpt_hybrid", (100, 3000), (32, 384)),
        ("dpt_hybrid_kitti", (352, 1216), (352, 1216)),
        ("dpt_hybrid_nyu", (480, 640), (480, 640)),
    ],
)
def test_size_at_which_the_net_runs(name, image, expected):
    assert meta(name).network_size(*image) == expected


def test_fixed_size():
    assert DPT(SMALL["base"], input_size=(64, 96)).network_size(480, 640) == (64, 96)


@torch.no_grad()
def test_relative_prediction():
    """Both resizings bicubic without antialiasing; the kind says that only inverse depth up to scale and shift is
    known."""
    net, x = small("base", target_size=(64, 64)), torch.rand(2, 3, 90, 130)
    prediction = net.predict(x)
    assert (prediction.kind, prediction.unit) == ("affine_inverse", None)
    values = net(F.interpolate(x, (64, 96), mode="bicubic", align_corners=False))
    expected = F.interpolate(values, (90, 130), mode="bicubic", align_corners=False)
    assert expected.min() > 0
    torch.testing.assert_close(prediction.depth, expected)


@torch.no_grad()
def test_overshoot_is_cut_off():
    net = small("base", target_size=(32, 32))
    values = torch.zeros(1, 1, 32, 32)
    values[..., 16:] = 5
    net.forward = lambda images: values
    depth = net.predict(torch.rand(3, 64, 64)).depth
    assert F.interpolate(values, (64, 64), mode="bicubic").min() < -0.1
    assert depth.min() == 0 and depth.max() > 5


@pytest.mark.parametrize(
    ("name", "scale", "shift", "farthest"), [("kitti", 6.016e-5, 0.00579, 172.7), ("nyu", 3.05e-4, 0.1378, 7.26)]
)
@torch.no_grad()
def test_metric_prediction(name, scale, shift, farthest):
    for geometry in ("large", "base", "hybrid"):
        net = meta(f"dpt_{geometry}_{name}")
        assert (net.scale, net.shift, net.kind, net.unit) == (scale, shift, "metric", "m")
    relative = small("base")
    metric = DPT(SMALL["base"], scale=scale, shift=shift).eval()
    metric.load_state_dict(relative.state_dict())
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(metric(x), 1 / (scale * relative(x) + shift))
    prediction = metric.predict(x, size=(64, 64))
    assert (prediction.kind, prediction.unit) == ("metric", "m")
    torch.testing.assert_close(prediction.depth, metric(x))
    metric.scratch.output_conv[4].bias.fill_(-100)
    torch.testing.assert_close(metric(x), torch.full((1, 1, 64, 64), farthest), rtol=1e-3, atol=0)
    assert (DPT(SMALL["base"], scale=-1.0, shift=0.0).eval()(x) == 1e8).all()


def test_inference_gives_the_numbers_of_training():
    """Without gradients values are overwritten and the head runs on the small map."""
    for name in SMALL:
        net, x = small(name).double(), torch.rand(2, 3, 64, 96, dtype=torch.float64)
        with torch.no_grad():
            inferred = net(x)
        torch.testing.assert_close(inferred, net(x).detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", list(SMALL))
@torch.no_grad()
def test_optimised_for_inference(name):
    net, x = small(name).train(), torch.rand(2, 3, 96, 128)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fast = net.optimize_for_inference()
    assert sum(isinstance(module, WinogradConv2d) for module in fast.modules()) == 3 * 4 + 3
    assert not fast.training and not any(p.requires_grad for p in fast.parameters())
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert fast.state_dict().keys() == before.keys()
    close(fast(x), net.eval()(x))
    torch.testing.assert_close(fast.predict(x[:, :, :70]).depth, net.predict(x[:, :, :70]).depth, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", list(SMALL))
def test_gradients(name):
    """Everything that is used learns, from the initial weights."""
    net = DPT(SMALL[name]).train()
    net(torch.rand(1, 3, 64, 96)).log().mean().backward()
    without = {key for key, p in net.named_parameters() if p.grad is None}
    assert without == {key for key, _ in net.named_parameters() if key.startswith(DEAD)}
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("training", [True, False])
def test_half_precision(training):
    """Under autocast, and with weights in half precision; the metric head stays in float32."""
    net = small("hybrid", scale=3.05e-4, shift=0.1378).train(training)
    x = torch.rand(1, 3, 64, 96)
    with torch.set_grad_enabled(training):
        exact = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = net(x)
        half = net.bfloat16()(x.bfloat16())
    for output in (mixed, half):
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, exact, rtol=0.02, atol=0)


@torch.no_grad()
def test_compiles_as_one_graph():
    net, x = small("base"), torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))


def test_parameter_groups():
    net = meta("dpt_hybrid")
    backbone, decoder = net.parameter_groups(1e-4)
    assert (backbone["lr"], decoder["lr"]) == (pytest.approx(1e-5), 1e-4)
    assert sum(p.numel() for p in backbone["params"]) == 98_181_952
    parameters = [*backbone["params"], *decoder["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in net.parameters()} and len(parameters) == len(set(parameters))


@torch.no_grad()
def test_empty_batch():
    for name in SMALL:
        assert small(name)(torch.rand(0, 3, 64, 96)).shape == (0, 1, 64, 96)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": "huge"}, r"geometry: expected one of large, base, hybrid or a DPTGeometry, got 'huge'"),
        ({"scale": 1.0}, r"scale, shift: expected both or neither, got 1\.0 and None"),
        (
            {"geometry": DPTGeometry(48, 4, 3, (0, 1, 3), (12, 24, 36, 48))},
            r"taps: expected 4 ascending blocks out of 0",
        ),
        (
            {"geometry": DPTGeometry(48, 4, 3, (0, 1, 2, 4), (12, 24, 36, 48))},
            r"blocks out of 0\.\.3, got \(0, 1, 2, 4\)",
        ),
        ({"geometry": DPTGeometry(48, 4, 3, (1, 0, 2, 3), (12, 24, 36, 48))}, r"taps: expected 4 ascending"),
        (
            {"geometry": DPTGeometry(48, 4, 3, (2, 3), (96, 192, 48, 48), trunk=(1, 1, 1))},
            r"widths: expected \(256, 512\), .* got \(96, 192, 48, 48\)",
        ),
        ({"geometry": DPTGeometry(50, 4, 3, (0, 1, 2, 3), (12, 24, 36, 48))}, r"heads: expected a divisor of dim = 50"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        DPT(**options)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(1, 3, 64, 80), ValueError, "multiples of 32, got 64x80"),
        (torch.rand(1, 3, 0, 64), ValueError, "multiples of 32, got 0x64"),
        (torch.rand(1, 1, 64, 64), ValueError, r"got \(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "divide by 255"),
    ],
)
def test_bad_images(images, error, message):
    with pytest.raises(error, match=message):
        small("base")(images)
