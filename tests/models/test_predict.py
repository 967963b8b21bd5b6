"""`predict`: sizes, modes, range, flip post-processing, errors. `to_metric`: closed forms, and what is refused."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mdepth_fast.data.samples import resize_image
from mdepth_fast.kinds import KINDS, UNITS
from mdepth_fast.models import DepthModel, DepthPrediction, DisparityModel, create_model, lanczos, list_models
from mdepth_fast.ops import disparity_to_depth
from mdepth_fast.weights.identify import skeleton


class Brightness(DisparityModel):
    """Its disparity is the red channel; it records the sizes and modes it was called with."""

    def __init__(self, **kwargs):
        super().__init__(
            **{"min_depth": 1.0, "max_depth": 10.0, "scales": (1, 0), "unit": None, "input_size": None} | kwargs
        )
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.dropout = torch.nn.Dropout()
        self.calls = []

    def forward(self, images):
        self.calls.append((tuple(images.shape), self.training, torch.is_grad_enabled()))
        disparity = images[:, :1] + self.weight
        return [F.avg_pool2d(disparity, 2), disparity]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return create_model("monodepth2_resnet18")


@pytest.mark.parametrize("shape", [(3, 70, 101), (1, 3, 64, 64), (2, 3, 37, 53)])
def test_depth_has_the_size_of_the_images(net, shape):
    prediction = net.predict(torch.rand(*shape))
    assert isinstance(prediction, DepthPrediction)
    assert prediction.depth.shape == (shape[0] if len(shape) == 4 else 1, 1, *shape[-2:])
    assert prediction.depth.min() >= 0.1 and prediction.depth.max() <= 100
    assert (prediction.kind, prediction.unit) == ("relative", None)
    assert not prediction.depth.requires_grad


def test_depth_comes_from_the_finest_disparity_resized_bilinearly():
    model, x = Brightness(unit="m"), torch.rand(2, 3, 90, 130)
    prediction = model.predict(x)
    assert (prediction.kind, prediction.unit) == ("metric", "m")
    assert model.calls == [((2, 3, 96, 128), False, False)]
    small = lanczos.resize_lanczos(x, (96, 128))
    back = F.interpolate(small[:, :1], (90, 130), mode="bilinear", align_corners=False)
    torch.testing.assert_close(prediction.depth, disparity_to_depth(back, min_depth=1.0, max_depth=10.0))


@pytest.mark.parametrize(
    ("shape", "options", "size", "expected"),
    [
        ((375, 1242), {}, None, (384, 1248)),
        ((20, 111), {}, None, (64, 96)),
        ((375, 1242), {"input_size": (192, 640)}, None, (192, 640)),
        ((375, 1242), {"input_size": (192, 640)}, (64, 96), (64, 96)),
    ],
)
def test_size_at_which_the_net_runs(shape, options, size, expected):
    model = Brightness(**options)
    assert model.predict(torch.rand(3, *shape), size=size).depth.shape[-2:] == shape
    assert model.calls[0][0] == (1, 3, *expected)


def test_size_must_suit_the_net(net):
    with pytest.raises(ValueError, match="multiples of 32, at least 64, got 60x64"):
        net.predict(torch.rand(3, 64, 64), size=(60, 64))


def test_every_module_returns_to_its_mode():
    model = Brightness().train()
    model.dropout.eval()
    model.predict(torch.rand(3, 64, 64))
    assert model.training and not model.dropout.training


def test_modes_return_after_an_error(net):
    net.train()
    with pytest.raises(ValueError, match="got 60x64"):
        net.predict(torch.rand(3, 64, 64), size=(60, 64))
    assert net.training and all(module.training for module in net.modules())


def test_flip_blends_as_published():
    class LeftToRight(Brightness):
        """A ramp in the frame of the net's input, so that a mirrored prediction differs."""

        def forward(self, images):
            ramp = torch.linspace(0.2, 0.8, images.shape[-1]).expand(images.shape[0], 1, *images.shape[-2:])
            return [F.avg_pool2d(ramp, 2), ramp]

    width = 640
    depth = LeftToRight().predict(torch.rand(3, 64, width), flip=True).depth
    disparity = (1 / depth - 0.1) / 0.9
    x = torch.linspace(0, 1, width)
    plain, mirrored = 0.2 + 0.6 * x, 0.8 - 0.6 * x
    expected = torch.empty(width)
    for i in range(width):
        left = min(max(1 - 20 * (x[i].item() - 0.05), 0), 1)
        right = min(max(1 - 20 * (1 - x[i].item() - 0.05), 0), 1)
        expected[i] = left * mirrored[i] + right * plain[i] + (1 - left - right) * (plain[i] + mirrored[i]) / 2
    torch.testing.assert_close(disparity[0, 0, 0], expected, rtol=1e-4, atol=1e-5)
    assert abs(expected[320] - 0.5) < 1e-3 and abs(expected[0] - 0.8) < 1e-6 and abs(expected[-1] - 0.8) < 1e-6


def test_flip_of_a_symmetric_image_is_symmetric(net):
    x = torch.rand(1, 3, 64, 96)
    depth = net.predict((x + x.flip(-1)) / 2, flip=True).depth
    torch.testing.assert_close(depth, depth.flip(-1), rtol=1e-4, atol=1e-4)


def test_images_are_cast_to_the_type_of_the_net():
    model = create_model("monodepth2_resnet18").double()
    assert model.predict(torch.rand(3, 64, 64)).depth.dtype == torch.float64


def test_empty_batch():
    assert Brightness().predict(torch.rand(0, 3, 64, 64)).depth.shape == (0, 1, 64, 64)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(3, 64, 64, dtype=torch.uint8), TypeError, "torch.uint8; divide by 255"),
        (torch.zeros(3, 64, 64, dtype=torch.int64), TypeError, "got torch.int64"),
        ("image.png", TypeError, "expected a torch.Tensor, got str"),
        (torch.rand(64, 64), ValueError, r"expected shape \(B, 3, H, W\), got \(64, 64\)"),
        (torch.rand(1, 4, 64, 64), ValueError, r"got \(1, 4, 64, 64\)"),
        (torch.full((3, 64, 64), 255.0), ValueError, r"expected values in \[0, 1\], got 255 to 255"),
        (torch.full((3, 64, 64), torch.nan), ValueError, r"expected values in \[0, 1\], got nan to nan"),
        (torch.full((3, 64, 64), -1.0), ValueError, r"got -1 to -1"),
    ],
)
def test_bad_images(net, bad, error, message):
    with pytest.raises(error, match=message):
        net.predict(bad)


def prediction(kind, depth=None):
    depth = torch.rand(2, 1, 6, 8) + 0.5 if depth is None else depth
    return DepthPrediction(depth, kind, UNITS[kind])


def is_metric(found, depth, **tolerance):
    assert (found.kind, found.unit) == ("metric", "m")
    torch.testing.assert_close(found.depth, depth, **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_one_unit(kind):
    assert prediction(kind).unit == UNITS[kind]
    for unit in {"m", "px", None, "mm"} - {UNITS[kind]}:
        with pytest.raises(ValueError, match=f"unit: expected {UNITS[kind]!r} for kind {kind!r}, got {unit!r}"):
            DepthPrediction(torch.ones(1, 1, 2, 2), kind, unit)
    with pytest.raises(ValueError, match="kind: expected one of metric, relative, affine_inverse, disparity, got 'x'"):
        DepthPrediction(torch.ones(1, 1, 2, 2), "x", None)


def test_metric_by_a_constant():
    relative = prediction("relative")
    is_metric(relative.to_metric(scale=5.4), 5.4 * relative.depth)
    scales = torch.tensor([2.0, 3.0])
    is_metric(relative.to_metric(scale=scales), relative.depth * scales.view(2, 1, 1, 1))
    half = prediction("relative", torch.full((1, 1, 2, 2), 1000.0, dtype=torch.float16))
    is_metric(half.to_metric(scale=100.0), torch.full((1, 1, 2, 2), 1e5))  # more than float16 holds


def test_metric_by_the_median_at_reference_points():
    """Each image has its own scale; the outlier, the hole and what is not predicted do not count."""
    relative = prediction("relative")
    truth = relative.depth * torch.tensor([3.0, 7.0]).view(2, 1, 1, 1)
    reference = torch.zeros_like(truth)
    reference[:, :, 2, :5] = truth[:, :, 2, :5]
    reference[:, :, 2, 0] = 900.0
    reference[:, :, 4] = torch.nan
    reference[:, :, 5] = 1.0
    relative.depth[:, :, 5] = torch.nan
    is_metric(relative.to_metric(reference=reference), truth.where(~relative.depth.isnan(), torch.nan), equal_nan=True)
    with pytest.raises(ValueError, match="reference: expected a point where depth is predicted in image 1, got none"):
        relative.to_metric(reference=torch.where(torch.arange(2).view(2, 1, 1, 1) == 0, reference, torch.nan))
    disparity = prediction("disparity", 1 / relative.depth)
    assert disparity.to_metric(reference=reference).depth[0, 0, 0, 0] == pytest.approx(truth[0, 0, 0, 0].item())


def test_metric_by_scale_and_shift_of_inverse_depth():
    truth = 2 + 8 * torch.rand(2, 1, 6, 8)
    scale, shift = torch.tensor([0.02, 3.0]).view(2, 1, 1, 1), torch.tensor([-0.3, 0.05]).view(2, 1, 1, 1)
    inverse = prediction("affine_inverse", (1 / truth - shift) / scale)
    reference = torch.where(torch.rand(truth.shape) < 0.3, truth, 0.0)
    is_metric(inverse.to_metric(reference=reference), truth, rtol=1e-3, atol=0)
    inverse.depth[0, 0, 0, 0] = -100.0  # behind what is infinitely far
    reference[0, 0, 0, 0] = 0
    assert inverse.to_metric(reference=reference).depth[0, 0, 0, 0] == torch.inf
    with pytest.raises(ValueError, match=r"reference: expected depth that falls where .* image 0 rises"):
        prediction("affine_inverse", truth).to_metric(reference=truth)
    two = torch.zeros_like(truth)
    two[:, :, 0, :2] = 1.0
    for few in (two, torch.zeros_like(truth)):
        with pytest.raises(ValueError, match=r"reference: expected at least 3 points of different depth in image 0"):
            inverse.to_metric(reference=few)
    with pytest.raises(ValueError, match=r"at least 3 points .* got 48 points and 1 predicted value"):
        prediction("affine_inverse", torch.ones_like(truth)).to_metric(reference=truth)


def test_metric_by_the_baseline():
    disparity = prediction("disparity", torch.tensor([[50.0, 25.0], [0.0, -1.0]]).expand(2, 1, 2, 2))
    K = torch.tensor([[100.0, 0, 1], [0, 90, 1], [0, 0, 1]])
    found = disparity.to_metric(baseline=0.5, K=torch.stack([K, K * torch.tensor([[2.0], [1], [1]])]))
    expected = torch.tensor([[1.0, 2.0], [torch.inf, torch.inf]])
    is_metric(found, torch.stack([expected, 2 * expected])[:, None])


def test_metric_by_the_height_of_the_camera():
    K = torch.tensor([[60.0, 0, 39.5], [0, 60, 19.5], [0, 0, 1]])
    below = (torch.arange(60.0) - 19.5).clamp(min=0.1).view(1, 1, 60, 1).expand(1, 1, 60, 80)
    truth = 60 * 1.2 / below  # a level camera 1.2 m above the ground
    is_metric(prediction("relative", truth / 9).to_metric(camera_height=1.2, K=K), truth, rtol=1e-4, atol=0)
    is_metric(prediction("disparity", 3 * below).to_metric(camera_height=1.2, K=K), truth, rtol=1e-4, atol=0)


HOW = {
    "scale": {"scale": 2.0},
    "reference": {"reference": torch.rand(2, 1, 6, 8) + 1},
    "baseline": {"baseline": 0.1, "K": torch.eye(3)},
    "camera_height": {"camera_height": 1.5, "K": torch.eye(3)},
}
POSSIBLE = {
    "metric": set(),
    "relative": {"scale", "reference", "camera_height"},
    "affine_inverse": {"reference"},
    "disparity": {"baseline", "reference", "camera_height"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_make_a_kind_metric_is_refused(kind):
    """And so are none, two, and a way without the camera matrix that it needs."""
    found = prediction(kind)
    for way, arguments in HOW.items():
        if way not in POSSIBLE[kind]:
            with pytest.raises(ValueError, match=f"{way}: cannot make kind '{kind}'|got depth that is metric already"):
                found.to_metric(**arguments)
    if kind != "metric":
        with pytest.raises(ValueError, match=r"expected exactly one of .* got none"):
            found.to_metric(K=torch.eye(3))
        with pytest.raises(ValueError, match=r"expected exactly one of .* got scale and reference"):
            found.to_metric(**HOW["scale"], **HOW["reference"])
    for way in POSSIBLE[kind] & {"baseline", "camera_height"}:
        with pytest.raises(ValueError, match=f"K: expected the camera matrix, which {way} needs, got none"):
            found.to_metric(**{way: 1.0})
        with pytest.raises(ValueError, match=f"{way}: expected a positive number of metres, got -1"):
            found.to_metric(**{way: -1.0}, K=torch.eye(3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "scale: expected positive numbers of metres, got 0.0"),
        ({"scale": torch.ones(3)}, ValueError, r"scale: expected a number or shape \(2,\), got \(3,\)"),
        ({"reference": 3.0}, TypeError, "reference: expected a torch.Tensor, got float"),
        ({"reference": torch.ones(6, 8)}, ValueError, r"expected the shape of the prediction, \(2, 1, 6, 8\), got \(6"),
        ({"camera_height": 1.0, "K": torch.eye(4)}, ValueError, r"K: expected shape \(3, 3\) or \(2, 3, 3\), got \(4"),
        ({"camera_height": 1.0, "K": -torch.eye(3)}, ValueError, r"K: expected \[\[fx, s, cx\]"),
    ],
)
def test_bad_arguments_of_to_metric(arguments, error, message):
    with pytest.raises(error, match=message):
        prediction("relative").to_metric(**arguments)


@pytest.mark.parametrize("size", [(19, 64), (60, 41), (45, 200)])
@pytest.mark.parametrize("kernel", [False, True])
def test_lanczos_is_that_of_the_training_data(size, kernel, monkeypatch):
    if not kernel:  # as PyTorch before it had one, and as exporters do
        monkeypatch.setattr(lanczos, "_HAS_KERNEL", False)
    image = np.random.default_rng(0).integers(0, 256, (37, 124, 3), dtype=np.uint8)
    expected = resize_image(image, *size)
    found = lanczos.resize_lanczos(torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255, size)
    error = (found[0].permute(1, 2, 0) * 255 - torch.from_numpy(expected)).abs()
    assert error.max() < 1.6 and error.mean() < 0.4  # bytes are rounded twice


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_model_predicts_in_half_precision(packaged_only, dtype):
    """Resizing comes before the cast: half precision has no antialiased resizing on a CPU."""
    for name in list_models():
        net = copy.copy(skeleton(name))
        if not isinstance(net, DepthModel):
            continue
        seen = []

        def infer(images, seen=seen):
            seen.append(images.dtype)
            return images[:, :1] + 1

        net.parameters = lambda: iter([torch.zeros((), dtype=dtype)])
        net.infer = infer
        depth = net.predict(torch.rand(3, 70, 101), flip=True).depth
        assert seen == [dtype] and depth.dtype == torch.float32 and depth.isfinite().all(), name


def test_a_network_in_bfloat16():
    net = create_model("monodepth2_resnet18", input_size=(64, 64))
    x = torch.rand(1, 3, 70, 101)
    expected = net.predict(x).depth
    assert (net.bfloat16().predict(x).depth / expected).log().abs().mean() < 0.02
