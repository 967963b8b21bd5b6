"""`predict`: sizes, modes, range, flip post-processing, errors."""

import pytest
import torch
import torch.nn.functional as F

from mdepth_fast.models import DepthPrediction, DisparityModel, create_model
from mdepth_fast.ops import disparity_to_depth


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
    small = F.interpolate(x, (96, 128), mode="bilinear", align_corners=False, antialias=True)
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
        (torch.full((3, 64, 64), -1.0), ValueError, r"got -1 to -1"),
    ],
)
def test_bad_images(net, bad, error, message):
    with pytest.raises(error, match=message):
        net.predict(bad)
