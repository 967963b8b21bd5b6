"""FastDepth: published sizes and names, a plain formulation, every decoder, the copy for inference."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mdepth_fast import use_backend
from mdepth_fast.models import FastDepth, create_model, load_checkpoint
from mdepth_fast.models.fastdepth import PRUNED_DECODER, PRUNED_ENCODER
from mdepth_fast.netadapt import ChannelGraph
from mdepth_fast.weights import convert_content

SMALL = {
    "encoder_channels": (8, 8, 16, 24, 16, 40, 24, 24, 24, 24, 24, 24, 32, 48),
    "decoder_channels": (16, 40, 24, 8, 8),
}


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def small(seed=0, **options):
    """A reduced network in eval mode whose batch norms have seen something."""
    torch.manual_seed(seed)
    return shaken(FastDepth(**{**SMALL, **options}))


def shaken(model):
    norms = [layer for layer in model.eval().modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.normal_(norm.running_mean, 0, 0.2)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, 0.2, 0.3)
    head = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    if head.out_channels == 1:  # or the output may be 0 everywhere
        head.weight.data.abs_()
        torch.nn.init.zeros_(norms[-1].running_mean)
        torch.nn.init.constant_(norms[-1].bias, 0.5)
    return model


def plain_forward(state, images):
    """The skip-add network as a program over the published names."""

    def normed(x, conv, norm, activation, stride=1, padding=0):
        weight = state[conv + ".weight"]
        groups = len(weight) if weight.shape[1] == 1 and x.shape[1] > 1 and padding else 1
        x = F.conv2d(x, weight, stride=stride, padding=padding, groups=groups)
        norm = [state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return activation(F.batch_norm(x, *norm))

    kept, x = {}, images
    for i, stride in enumerate((2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)):
        x = normed(x, f"conv{i}.0", f"conv{i}.1", F.relu6, stride, 1)
        if i:
            x = normed(x, f"conv{i}.3", f"conv{i}.4", F.relu6)
        kept[i] = x
    for k, unit in zip(range(1, 6), (None, 5, 3, 1, None)):
        name = f"decode_conv{k}"
        x = normed(x, f"{name}.0.0", f"{name}.0.1", F.relu, padding=2)
        x = normed(x, f"{name}.1.0", f"{name}.1.1", F.relu)
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = x if unit is None else x + kept[unit]
    return normed(x, "decode_conv6.0", "decode_conv6.1", F.relu)


def published(model):
    """The state dict of a network with skips under its published names."""
    return {
        key.replace("encoder.", "conv").replace("decoder.conv", "decode_conv"): value
        for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "total", "convolutions", "macs"),
    [("fastdepth", 3_960_930, 3_933_088, 0.7367), ("fastdepth_pruned", 1_360_786, 1_343_664, 0.3664)],
)
def test_published_sizes(name, total, convolutions, macs):
    with torch.device("meta"):
        model, images = create_model(name), torch.empty(1, 3, 224, 224)
    assert parameters(model) == total
    assert sum(parameters(layer) for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)) == convolutions
    with FlopCounterMode(display=False) as counter:
        assert model(images).shape == (1, 1, 224, 224)
    assert round(counter.get_total_flops() / 2e9, 4) == macs


@pytest.mark.parametrize(
    ("decoder", "count"),
    [
        ("nnconv5dw", 753_954),
        ("nnconv5", 17_461_218),
        ("nnconv3dw", 753_954 - 16 * 1984),
        ("blconv5", 17_461_218),
        ("blconv7dw", 753_954 + 24 * 1984),
        ("deconv5dw", 753_954),
        ("deconv5", 17_461_218),
        ("deconv9dw", 753_954 + 56 * 1984),
        ("deconv3", 17_461_218 - 16 * 698_368),
        ("upconv", 17_461_218),
        ("upproj", 38_067_042),
        ("shuffle5dw", 25 * 340 + 256**2 + 64**2 + 16**2 + 4**2 + 4 * 340),
        ("shuffle3", 9 * (256**2 + 64**2 + 16**2 + 4**2) + 2 * 340),
    ],
)
def test_every_decoder(decoder, count):
    """Without skips; the published numbers, or what follows from the kernel's size."""
    with torch.device("meta"):
        model = FastDepth(decoder=decoder, skip="none")
        assert parameters(model.decoder) == count and parameters(model.encoder) == 3_206_976
        assert model(torch.empty(2, 3, 64, 96)).shape == (2, 1, 64, 96)


@pytest.mark.parametrize("decoder", ["nnconv3dw", "nnconv5", "blconv3dw", "deconv3dw", "deconv5", "upconv", "upproj"])
@pytest.mark.parametrize("skip", ["add", "concat"])
def test_every_decoder_with_skips(decoder, skip):
    with torch.device("meta"):
        model = FastDepth(decoder=decoder, skip=skip)
        inputs = [
            next(layer for layer in stage.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)))
            for stage in model.decoder
        ]
        widths = (1024, 512, 512, 256, 128, 32) if skip == "concat" else (1024, 512, 256, 128, 64, 32)
        assert tuple(conv.in_channels for conv in inputs) == widths
        assert model(torch.empty(1, 3, 32, 64)).shape == (1, 1, 32, 64)


def test_decoders_do_what_their_names_say():
    """One stage of each, weights of one: where a pixel goes, and how far."""
    x = torch.zeros(1, 4, 6, 6)
    x[:, :, 2, 3] = 1.0

    def support(decoder):
        model = FastDepth(
            decoder=decoder,
            encoder_channels=(4,) * 13 + (1024 if "shuffle" in decoder else 4,),
            decoder_channels=None if "shuffle" in decoder else (4,) * 5,
            skip="none",
        ).eval()
        stage = model.decoder[0]
        for layer in stage.modules():
            if hasattr(layer, "kernel_size"):
                torch.nn.init.ones_(layer.weight)
        values = x.repeat(1, 256, 1, 1) if "shuffle" in decoder else x
        out = stage(values)[0, 0]
        rows, columns = (torch.where(out.any(axis))[0] for axis in (1, 0))
        return out.shape, (rows[0].item(), rows[-1].item()), (columns[0].item(), columns[-1].item())

    size = torch.Size((12, 12))
    assert support("nnconv5dw") == (size, (0, 9), (2, 11))  # 5x5, then every pixel twice
    assert support("nnconv3") == (size, (2, 7), (4, 9))
    assert support("blconv3dw") == (size, (1, 8), (3, 10))  # bilinear reaches one further
    assert support("deconv5dw") == (size, (2, 6), (4, 8))  # pixel (4, 6) and two around it
    assert support("deconv3") == (size, (3, 5), (5, 7))
    assert support("upconv") == (size, (2, 6), (4, 8))
    assert support("upproj") == (size, (1, 7), (3, 9))  # 5x5 and 3x3
    assert support("shuffle3dw") == (size, (3, 6), (5, 8))  # a 2x2 square and one around it


def test_equals_the_plain_network_under_the_published_names():
    model, images = small().double(), torch.rand(2, 3, 64, 96, dtype=torch.float64)
    model.decoder.conv6[1].bias.data -= model(images).median()  # so that the last ReLU does something
    want = plain_forward(published(model), images)
    assert want.std() > 0.01 and 0.4 < (want == 0).double().mean() < 0.6
    torch.testing.assert_close(model(images), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("skip", ["add", "concat", "none"])
def test_published_files_round_trip(tmp_path, skip):
    source, images = small(1, skip=skip), torch.rand(1, 3, 32, 64)
    state = published(source)
    if skip == "none":
        state = {key.replace("encoder.", "mobilenet."): value for key, value in source.state_dict().items()}
        assert "mobilenet.13.4.running_mean" in state and "decoder.conv5.0.0.weight" in state
    else:
        assert "conv13.4.running_mean" in state and "decode_conv6.0.weight" in state
    torch.save({"model": state, "epoch": 19}, tmp_path / "net.pth.tar")
    model = small(2, skip=skip)
    load_checkpoint(model, tmp_path / "net.pth.tar")
    assert torch.equal(model(images), source(images))
    torch.save(source.state_dict(), tmp_path / "own.pt")
    model = small(3, skip=skip)
    load_checkpoint(model, tmp_path / "own.pt")
    assert torch.equal(model(images), source(images))


def test_a_file_of_the_network_without_skips_is_not_taken_for_one_with_them(tmp_path):
    """All shapes would fit."""
    for given, wanted in (("none", "add"), ("add", "none")):
        source = small(skip=given)
        key = "mobilenet." if given == "none" else "conv"
        state = {name.replace("encoder.", key): value for name, value in source.state_dict().items()}
        if given == "add":
            state = published(source)
        torch.save(state, tmp_path / "net.pt")
        with pytest.raises(ValueError, match="does not fit the model"):
            load_checkpoint(small(skip=wanted), tmp_path / "net.pt")


def test_pruned_shapes_can_be_rebuilt_from_their_lists(tmp_path):
    with torch.device("meta"):
        pruned = create_model("fastdepth_pruned")
        again = FastDepth(encoder_channels=PRUNED_ENCODER, decoder_channels=PRUNED_DECODER)
        assert [p.shape for p in pruned.parameters()] == [p.shape for p in again.parameters()]
        assert [pruned.encoder[i][3].out_channels for i in (5, 3, 1)] == [256, 120, 56]
        uneven = FastDepth(encoder_channels=range(3, 17), decoder_channels=(5, 8, 6, 4, 2)).eval()
        assert uneven(torch.empty(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_netadapts_channels_rebuilt_and_optimised():
    """Channels that meet in a sum shrink together, so the lists of what is left make the same network."""
    model, images = small(), torch.rand(1, 3, 64, 64)
    graph = ChannelGraph(model, images)
    kept = {graph.number("encoder.5.3"): torch.arange(0, 40, 2), graph.number("decoder.conv1.1.0"): torch.arange(9)}
    smaller = graph.shrink(model, kept)
    pointwise = [
        [layer for layer in part.modules() if isinstance(layer, torch.nn.Conv2d)][-1].weight.shape[0]
        for part in (*smaller.encoder, *smaller.decoder)
    ]
    assert pointwise[5] == pointwise[15] == 20 and pointwise[14] == 9
    again = FastDepth(encoder_channels=pointwise[:14], decoder_channels=pointwise[14:19]).eval()
    again.load_state_dict(smaller.state_dict())
    want = smaller(images)
    assert want.std() > 1e-3 and torch.equal(again(images), want)
    torch.testing.assert_close(smaller.optimize_for_inference()(images), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skip", ["add", "concat", "none"])
@pytest.mark.parametrize("decoder", ["nnconv5dw", "nnconv3dw", "nnconv7dw", "nnconv3", "deconv5dw", "upproj"])
def test_optimised_for_inference(decoder, skip):
    model = small(decoder=decoder, skip=skip)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast, images = model.optimize_for_inference(), torch.rand(2, 3, 64, 96)
    want = model(images)
    assert want.std() > 1e-3
    assert not any(parameter.requires_grad for parameter in fast.parameters()) and not fast.training
    torch.testing.assert_close(fast(images), want, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    exact, images = model.double(), images.double()
    torch.testing.assert_close(exact.optimize_for_inference()(images), exact(images), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(copy.deepcopy(fast).double()(images), exact(images), rtol=1e-4, atol=1e-5)


def test_optimised_at_its_own_size_predicts_the_same():
    model, images = shaken(create_model("fastdepth_pruned")), torch.rand(2, 3, 240, 320)
    fast = model.optimize_for_inference()
    got, want = fast.predict(images), model.predict(images)
    assert (got.kind, got.unit) == (want.kind, want.unit) == ("metric", "m") and got.depth.shape == (2, 1, 240, 320)
    torch.testing.assert_close(got.depth, want.depth, rtol=1e-4, atol=1e-4)
    with use_backend("reference"):
        torch.testing.assert_close(fast.predict(images).depth, want.depth, rtol=1e-4, atol=1e-4)


def test_optimised_compiles_to_one_graph():
    fast, images = small().optimize_for_inference(), torch.rand(1, 3, 32, 64)
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(images), fast(images))


@pytest.mark.parametrize("options", [{}, {"skip": "concat"}, {"skip": "none", "decoder": "upproj"}])
def test_a_graph_for_fx(options):
    model, images = small(**options), torch.rand(1, 3, 64, 32)
    graph = torch.fx.symbolic_trace(model)
    assert torch.equal(graph(images), model(images))
    targets = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    assert {"encoder.0.0", "encoder.13.4", "decoder.conv1.0.0" if not options else "encoder.5.3"} <= targets


def test_predict_resizes_the_whole_image():
    model, images = small(), torch.rand(2, 3, 96, 128)
    prediction = model.predict(images)
    resized = F.interpolate(images, (224, 224), mode="bilinear", align_corners=False, antialias=True)
    want = F.interpolate(model(resized), (96, 128), mode="bilinear", align_corners=False)
    torch.testing.assert_close(prediction.depth, want)
    assert (prediction.kind, prediction.unit) == ("metric", "m") and prediction.depth.min() >= 0


def test_every_parameter_gets_a_gradient():
    for options in ({}, {"decoder": "upproj", "skip": "concat"}, {"decoder": "deconv5dw"}):
        model = small(**options).train()
        model(torch.rand(2, 3, 64, 64)).sub(1).abs().mean().backward()
        missing = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
        assert not missing


def test_published_initialisation():
    model = FastDepth(encoder_channels=(8,) * 13 + (256,), decoder_channels=(256, 8, 8, 8, 8))
    conv = model.decoder.conv1[1][0]
    assert abs(conv.weight.std().item() / (2 / 256) ** 0.5 - 1) < 0.02 and abs(conv.weight.mean()) < 1e-3
    depthwise = model.decoder.conv1[0][0]
    assert abs(depthwise.weight.std().item() / (2 / (25 * 256)) ** 0.5 - 1) < 0.05
    norm = model.encoder[0][1]
    assert (norm.weight == 1).all() and (norm.bias == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "nnconv4dw"}, "decoder: expected nnconvK, .* got 'nnconv4dw'"),
        ({"decoder": "upprojdw"}, "decoder: expected .* got 'upprojdw'"),
        ({"skip": "sum"}, 'skip: expected "add", "concat" or "none", got \'sum\''),
        ({"encoder_channels": (8,) * 13}, "channels: expected 14 numbers of channels"),
        ({"decoder_channels": (8,) * 4}, r"decoder_channels: expected 5 numbers of channels, got \(8, 8, 8, 8\)"),
        (
            {"decoder_channels": (16, 32, 24, 8, 8)},
            "expected stage 2 to have the 40 channels of encoder unit 5, .* got 32",
        ),
        ({"decoder": "shuffle5"}, 'skip: expected "none" with the decoder shuffle5'),
        ({"decoder": "shuffle5", "skip": "none"}, "decoder_channels: expected None"),
        ({"decoder": "shuffle5", "skip": "none", "decoder_channels": None}, "the last to be 1024 .* got 48"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        FastDepth(**{**SMALL, **options})


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.rand(1, 3, 60, 64), ValueError, "images: expected H and W that are multiples of 32, got 60x64"),
        (torch.rand(1, 3, 64, 0), ValueError, "multiples of 32, got 64x0"),
        (torch.rand(3, 64, 64), ValueError, r"expected shape \(B, 3, H, W\), got \(3, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "divide by 255"),
    ],
)
def test_bad_images(bad, error, message):
    model = small()
    for net in (model, model.optimize_for_inference()):
        with pytest.raises(error, match=message):
            net(bad)


def under_repository_names(state, decoder, skip):
    """A state dict under the names of the published code, which has a class for each kind of decoder."""
    stage = {"dec": "convt", "upc": "upconv", "upp": "upproj"}.get(decoder[:3], "conv")
    parts = {"0.long.0.": "branch1.", "0.long.1.0.": "branch1.3.", "0.long.1.1.": "branch1.4.", "0.short.": "branch2."}
    named = {}
    for key, value in state.items():
        part, rest = key.split(".", 1)
        if part == "encoder":
            key = f"mobilenet.{rest}" if skip == "none" else f"conv{rest}"
        elif skip != "none":
            key = f"decode_{rest}"
        else:
            name, rest = rest.split(".", 1)
            if decoder.startswith("shuffle"):
                first, rest = rest.split(".", 1)
                rest = f"{int(first) - 1}.{rest}"
            for ours, theirs in parts.items():
                rest = theirs + rest.removeprefix(ours) if rest.startswith(ours) else rest
            if stage != "conv":
                name = "convf" if name == "conv6" else name.replace("conv", stage)
            key = f"decoder.{name}.{rest}"
        named[key] = value
    return named


KINDS = [("nnconv5", "none"), ("nnconv5dw", "none"), ("nnconv5dw", "add"), ("nnconv3dw", "concat"), ("deconv5", "none")]
KINDS += [("deconv3dw", "none"), ("upconv", "none"), ("upproj", "none"), ("shuffle5", "none"), ("shuffle3dw", "none")]


@pytest.mark.parametrize(("decoder", "skip"), KINDS)
def test_every_kind_is_read_off_its_file(decoder, skip):
    with torch.device("meta"):
        model = FastDepth(decoder=decoder, skip=skip)
    state = under_repository_names(model.state_dict(), decoder, skip)
    name, options, found = convert_content({"model": state}, Path("net.pth"))
    usual = {"decoder": "nnconv5dw", "skip": "add"}
    stated = {key: value for key, value in {"decoder": decoder, "skip": skip}.items() if value != usual[key]}
    assert name == "fastdepth" and options == stated
    assert found.keys() == model.state_dict().keys()
    assert all(found[key] is state[theirs] for key, theirs in zip(model.state_dict(), state))


def test_the_pruned_kind_and_options_that_no_shape_tells():
    with torch.device("meta"):
        pruned, other = create_model("fastdepth_pruned"), FastDepth(decoder="blconv5dw", skip="none")
    state = under_repository_names(pruned.state_dict(), "nnconv5dw", "add")
    assert convert_content(state, Path("net.pth"))[:2] == ("fastdepth_pruned", {})
    state = under_repository_names(other.state_dict(), "blconv5dw", "none")
    found = convert_content(state, Path("net.pth"), "fastdepth", {"decoder": "blconv5dw"})
    assert found[:2] == ("fastdepth", {"skip": "none", "decoder": "blconv5dw"})


def test_dense_transposed_convolutions_start_by_the_fan_of_their_inputs():
    torch.manual_seed(0)
    model = FastDepth(
        decoder="deconv5", skip="none", encoder_channels=(8,) * 13 + (256,), decoder_channels=(64, 8, 8, 8, 8)
    )
    assert model.decoder.conv1[0].weight.std().item() == pytest.approx((2 / (25 * 256)) ** 0.5, rel=0.01)
