"""`FlowLoss` against loops in double precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mdepth_fast.losses import FlowLoss
from mdepth_fast.losses.flow import border_mask, local_response_norm


def sample(image, x, y):
    """Bilinear value of image (c,h,w) at x, y, or None outside."""
    height, width = image.shape[1:]
    if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
        return None
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    a, b = x - left, y - top
    rows = [(1 - a) * image[:, top + d, left] + a * image[:, top + d, left + 1] for d in (0, 1)]
    return (1 - b) * rows[0] + b * rows[1]


def penalty(value, alpha, scale):
    return ((scale * value) ** 2 + 1e-6) ** alpha


def oracle(flow, first, second, o):
    batch, _, height, width = flow.shape
    top, left = round(o["border"] * height), round(o["border"] * width)
    counts = np.zeros((height, width), bool)
    counts[top : height - top, left : width - left] = True
    if o["normalize"]:
        first, second = ((x - 0.25) / (1 + ((x - 0.25) ** 2).sum(1, keepdims=True)) ** 0.7 for x in (first, second))
    photometric = smoothness = 0.0
    for n in range(batch):
        inside = np.zeros((height, width), bool)
        for y in range(height):
            for x in range(width):
                value = sample(second[n], x + flow[n, 0, y, x], y + flow[n, 1, y, x])
                inside[y, x] = value is not None
                if value is not None and counts[y, x]:
                    photometric += penalty(np.abs(first[n, :, y, x] - value).sum(), o["alpha"], o["scale"])
        regions = [(counts, o["smooth_alpha"], o["smooth_scale"])]
        if o["outside_alpha"] is not None:
            regions = [(counts & inside, *regions[0][1:]), (counts, o["outside_alpha"], o["outside_scale"])]
        for region, alpha, scale in regions:
            for y in range(height):
                for x in range(width):
                    right = x + 1 < width and region[y, x] and region[y, x + 1]
                    below = y + 1 < height and region[y, x] and region[y + 1, x]
                    dx = flow[n, :, y, x] - flow[n, :, y, x + 1] if x + 1 < width else None
                    dy = flow[n, :, y, x] - flow[n, :, y + 1, x] if y + 1 < height else None
                    if o["form"] == "joint":
                        if right and below:
                            smoothness += penalty(np.abs(dx).sum() + np.abs(dy).sum(), alpha, scale)
                        continue
                    smoothness += sum(penalty(d, alpha, scale).sum() for d, on in ((dx, right), (dy, below)) if on)
    pixels = batch * height * width
    return photometric / pixels, smoothness / pixels


PLAIN = {
    "smoothness": 0.7,
    "alpha": 0.25,
    "scale": 1.0,
    "smooth_alpha": 0.37,
    "smooth_scale": 1.0,
    "form": "separate",
    "outside_alpha": None,
    "outside_scale": 1.0,
    "border": 0.0,
    "normalize": False,
}
RELEASED = {
    "smoothness": 0.64,
    "alpha": 0.53,
    "scale": 360.0,
    "smooth_alpha": 0.28,
    "smooth_scale": 3.5,
    "form": "joint",
    "outside_alpha": 0.9,
    "outside_scale": 1.8,
    "border": 0.1,
    "normalize": True,
}


@pytest.mark.parametrize("options", [PLAIN, PLAIN | {"border": 0.2, "normalize": True}, RELEASED])
def test_loss_is_that_of_the_oracle(options):
    rng = np.random.default_rng(0)
    flow, first, second = rng.normal(0, 2, (2, 2, 9, 11)), rng.random((2, 3, 9, 11)), rng.random((2, 3, 9, 11))
    photometric, smoothness = oracle(flow, first, second, options)
    tensors = [torch.from_numpy(array) for array in (flow, first, second)]
    parts = FlowLoss(**options, mean=(0.25, 0.25, 0.25))(*tensors)
    assert parts.photometric.item() == pytest.approx(photometric, rel=1e-9)
    assert parts.smoothness.item() == pytest.approx(smoothness, rel=1e-9)
    assert parts.loss.item() == pytest.approx(photometric + options["smoothness"] * smoothness, rel=1e-9)


def test_the_true_flow_is_a_minimum():
    """Of the photometric term along a shift of the second image."""
    image = F.avg_pool2d(torch.rand(1, 3, 40, 44, dtype=torch.float64), 5, 1)
    first, second = image[..., 3:33], image[..., :30]  # what is at x in the first is at x + 3 in the second
    loss = FlowLoss(smoothness=0.0, alpha=0.45)
    found = {}
    for shift in (2.9, 3.0, 3.1):
        flow = torch.tensor([shift, 0.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, *first.shape[-2:])
        found[shift] = loss(flow, first, second).loss.item()
    assert found[3.0] < 0.5 * min(found[2.9], found[3.1])


def test_smoothness_goes_from_the_inside_to_the_outside():
    """Where the flow stays inside, the part for the outside has no gradient; the neighbours outside follow."""
    flow = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    flow[:, 0, :, 6:] = 5.0  # leaves the image on the right
    flow.requires_grad_()
    image = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    FlowLoss(1.0, outside_alpha=0.9, form="joint")(flow, image, image).loss.backward()
    assert flow.grad is not None
    assert (flow.grad[:, 0, :, :6] == 0).all() and (flow.grad[:, 0, :7, 6] > 0).all()


def test_local_response_norm():
    images = torch.tensor([0.5, 0.25, 0.0]).view(1, 3, 1, 1)
    expected = images / (1 + 0.25 + 0.0625) ** 0.7
    torch.testing.assert_close(local_response_norm(images), expected)
    torch.testing.assert_close(local_response_norm(images + 0.1, (0.1, 0.1, 0.1)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """Columns beyond 256 have no bfloat16 of their own, and squares of images lose digits."""
    flow, first, second = torch.full((1, 2, 2, 3000), 0.25), torch.rand(1, 3, 2, 3000), torch.rand(1, 3, 2, 3000)
    flow[:, 0, :, ::2] = -0.75
    given = [one.to(dtype) for one in (flow, first, second)]
    loss = FlowLoss(outside_alpha=0.9, normalize=True, mean=(0.4, 0.5, 0.6))
    assert torch.equal(loss(*given).loss, loss(*(one.float() for one in given)).loss)


@pytest.mark.parametrize("normalize", [False, True])
def test_images_of_another_kind_are_refused(normalize):
    flow, image = torch.zeros(1, 2, 4, 5), torch.rand(1, 3, 4, 5)
    for change, error, message in (
        ({"first": image.byte()}, TypeError, "^first: expected a floating-point tensor, got torch.uint8"),
        ({"second": None}, TypeError, "^second: expected a tensor .*, got NoneType"),
        ({"second": image[..., 1:]}, ValueError, "^second: expected shape"),
        ({"flow": flow[..., 1:]}, ValueError, "^flow: expected shape"),
    ):
        with pytest.raises(error, match=message):
            FlowLoss(normalize=normalize)(**{"flow": flow, "first": image, "second": image} | change)


def test_border_and_bad_options():
    assert border_mask(torch.zeros(2, 2, 20, 30), 0.1).sum() == 2 * 16 * 24
    for options, message in (
        ({"smoothness": -1.0}, "smoothness: expected a weight of at least 0"),
        ({"border": 0.5}, r"border: expected a share in \[0, 0.5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            FlowLoss(**options)
    image = torch.rand(1, 3, 2, 30)
    with pytest.raises(ValueError, match=r"border: expected a share that leaves pixels of 2x30, got 0.4"):
        FlowLoss(border=0.4)(torch.zeros(1, 2, 2, 30), image, image)
