import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mdepth_fast.data import AUGMENTATIONS, DepthAugment, DepthDataset, RgbdFolder, collate_depth

PLAIN: dict[str, Any] = {"scale": (1, 1), "rotate": 0, "flip": 0, "color": (1, 1)}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(count: int, height: int, width: int) -> dict[str, Any]:
    """Images whose red and green say column and row (0 to 255 over the image), depth that says both exactly."""
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([u * 255 / (width - 1), v * 255 / (height - 1), torch.full_like(u, 128)]).round().byte()
    depth = (1 + u + 2048 * v).float()[None]  # exact in float32
    return {
        "target": image.repeat(count, 1, 1, 1),
        "depth": depth.repeat(count, 1, 1, 1),
        "name": [f"frame {i}" for i in range(count)],
    }


def source_pixels(depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Column and row that depth of `coordinates` was read at, and where there is any."""
    code = (depth - 1).round().long()
    return code % 2048, code // 2048, depth > 0


def noise(count: int, height: int, width: int) -> dict[str, Any]:
    generator = seeded(7)
    return {
        "target": torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8),
        "depth": torch.rand(count, 1, height, width, generator=generator) * 9 + 1,
        "name": [str(i) for i in range(count)],
    }


def plainly(augment: DepthAugment, image: np.ndarray, depth: np.ndarray, draw: list[float]) -> tuple[Any, Any]:
    """One sample (h,w,3) and (h,w), each output pixel followed back through the operations one after the other."""
    h, w = depth.shape
    if augment.resize is None:
        rh, rw = h, w
    elif isinstance(augment.resize, int):
        rh, rw = (round(n * augment.resize / min(h, w)) for n in (h, w))
    else:
        rh, rw = augment.resize[0] or h, augment.resize[1] or w
    H, W = augment.size
    ch, cw = augment.crop_size
    s = augment.scale[0] + draw[0] * (augment.scale[1] - augment.scale[0])
    angle = math.radians(augment.rotate) * (2 * draw[1] - 1)
    corner = []
    for d, n, c in ((draw[2], rh, ch), (draw[3], rw, cw)):
        room = int(n * s + 1e-6) - c
        corner.append(room / 2 if room < 0 else int(d * (room + 1)) if augment.crop == "random" else room // 2)
    top, left = corner
    # The image, made smaller by another library where the output is smaller than the file.
    ph, pw = min(h, round(rh * H / ch)), min(w, round(rw * W / cw))
    small = np.asarray(Image.fromarray(image).resize((pw, ph), Image.Resampling.BILINEAR), dtype=np.float64)
    out_image, out_depth = np.zeros((H, W, 3)), np.zeros((H, W))
    for y in range(H):
        for x in range(W):
            column, row = (x + 0.5) * cw / W, (y + 0.5) * ch / H  # in the window
            column = cw - column if draw[4] < augment.flip else column
            column, row = column + left - rw * s / 2, row + top - rh * s / 2  # from the centre of the scaled image
            column, row = (
                math.cos(angle) * column - math.sin(angle) * row,
                math.sin(angle) * column + math.cos(angle) * row,
            )
            column, row = (column / s + rw / 2) / rw, (row / s + rh / 2) / rh  # shares of the image
            if not (0 <= column < 1 and 0 <= row < 1):
                continue
            out_depth[y, x] = depth[int(row * h + 1e-3), int(column * w + 1e-3)] / s
            u, v = (min(max(k * n - 0.5, 0), n - 1) for k, n in ((column, pw), (row, ph)))
            u0, v0 = min(int(u), pw - 2), min(int(v), ph - 2)
            a, b = u - u0, v - v0
            patch = small[v0 : v0 + 2, u0 : u0 + 2]
            out_image[y, x] = (1 - b) * ((1 - a) * patch[0, 0] + a * patch[0, 1]) + b * (
                (1 - a) * patch[1, 0] + a * patch[1, 1]
            )
    return out_image / 255, out_depth


CASES: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((24, 32), {"height": 20, "width": 27}),  # Eigen's, without a resize
    ((48, 64), {"height": 22, "width": 30, "resize": (24, 32)}),
    ((37, 61), {"height": 17, "width": 50, "resize": (18, 60), "scale": (1, 1.2), "rotate": 0}),
    ((30, 44), {"height": 33, "width": 21, "resize": (33, None), "rotate": 30}),  # rows grow, columns stay
    ((48, 64), {"height": 22, "width": 22, "resize": 25, "crop_size": (23, 30), "crop": "centre"}),
    ((31, 45), {"height": 24, "width": 36, "scale": (0.6, 0.9), "rotate": 180}),
]


@pytest.mark.parametrize(("size", "arguments"), CASES)
def test_agrees_with_pixel_by_pixel_loops(size: tuple[int, int], arguments: dict[str, Any]) -> None:
    augment = DepthAugment(**arguments, color=(1, 1))
    batch = noise(4, *size)
    out = augment(batch, seeded(3))
    draws = torch.rand(4, 14, generator=seeded(3), dtype=torch.float64).tolist()
    assert len({draw[4] < 0.5 for draw in draws}) == 2  # some are flipped
    for i, draw in enumerate(draws):
        image, depth = plainly(augment, batch["target"][i].permute(1, 2, 0).numpy(), batch["depth"][i, 0].numpy(), draw)
        off = np.abs(out["depth"][i, 0].numpy() - depth) > 1e-5 * depth
        assert off.mean() < 2e-3  # rounding may choose the other neighbour of a boundary, and the other side of an edge
        difference = np.abs(out["target"][i].permute(1, 2, 0).numpy() - image).max(-1)
        assert (difference > 1.1 / 255).mean() < 2e-3


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_recipes_keep_image_and_depth_on_each_other(name: str) -> None:
    arguments = AUGMENTATIONS[name]
    height, width = (352, 1216) if "kitti" in name else (427, 565) if "bts" in name else (480, 640)
    augment = DepthAugment(**{**arguments, "color": (1, 1), "gamma": (1, 1), "brightness": (1, 1)})
    augment.jitter, augment.max_depth, augment.drop_extremes, augment.depth_from_scale = (0, 0, 0), 1e9, False, False
    if name == "dorn_kitti":
        height, width = 375, 1242
    batch = coordinates(6, height, width)
    out = augment(batch, seeded(1))
    assert out["target"].shape == (6, 3, arguments["height"], arguments["width"])
    assert out["depth"].shape == (6, 1, arguments["height"], arguments["width"])
    u, v, valid = source_pixels(out["depth"][:, 0])
    assert valid.float().mean() > 0.9
    # Two file pixels at most where an output pixel is that wide; less than one byte step of the ramps otherwise.
    for channel, (pixel, length) in enumerate(((u, width), (v, height))):
        said = out["target"][:, channel] * (length - 1)
        inner = valid & (pixel > 3) & (pixel < length - 4)
        assert ((said - pixel).abs()[inner] < 0.75 * length / 255 + 2).all()
    # In eval mode: the centre.
    out = augment.eval()(batch)
    u, v, valid = source_pixels(out["depth"][:, 0])
    assert valid.all()
    assert (
        abs(float(u.float().mean()) - (width - 1) / 2) < 2.1 and abs(float(v.float().mean()) - (height - 1) / 2) < 2.1
    )


def test_scale_divides_depth_and_magnifies() -> None:
    batch = coordinates(32, 48, 64)
    geometry = DepthAugment(40, 54, scale=(1, 2), rotate=0, color=(1, 1), depth_from_scale=False)(batch, seeded(2))
    u, v, _ = source_pixels(geometry["depth"][:, 0])
    magnified = 53 / (u[:, :, 0] - u[:, :, -1]).abs().float().mean(1), 39 / (v[:, -1] - v[:, 0]).float().mean(1)
    batch["depth"].fill_(6)
    depth = DepthAugment(40, 54, scale=(1, 2), rotate=0, color=(1, 1))(batch, seeded(2))["depth"]
    scale = 6 / depth.flatten(1)[:, 0]
    assert (depth == depth[:, :, :1, :1]).all()
    assert scale.min() >= 1 and scale.max() <= 2 and scale.std() > 0.2
    for measured in magnified:
        assert torch.allclose(measured, scale, rtol=0.06)
    assert (DepthAugment(40, 54, scale=(1, 2), depth_from_scale=False, rotate=0)(batch)["depth"] == 6).all()


def test_flip_mirrors_image_and_depth_together() -> None:
    batch = coordinates(64, 12, 20)
    out = DepthAugment(12, 20, **{**PLAIN, "flip": 0.5})(batch, seeded(0))
    flipped = [bool(depth[0, 0, 0] > depth[0, 0, -1]) for depth in out["depth"]]
    assert 20 < sum(flipped) < 44
    for i, mirrored in enumerate(flipped):
        for key, unit in (("target", 255), ("depth", 1)):
            straight = batch[key][i] / unit
            assert torch.allclose(out[key][i], straight.flip(-1) if mirrored else straight, atol=1e-4)


def test_a_crop_alone_keeps_the_pixels() -> None:
    batch = noise(16, 30, 50)
    out = DepthAugment(20, 32, **PLAIN)(batch, seeded(0))
    corners = set()
    for i in range(16):
        here = [
            (top, left)
            for top in range(11)
            for left in range(19)
            if torch.equal(batch["depth"][i, :, top : top + 20, left : left + 32], out["depth"][i])
        ]
        assert len(here) == 1
        ((top, left),) = here
        corners.add((top, left))
        crop = batch["target"][i, :, top : top + 20, left : left + 32] / 255
        assert torch.allclose(out["target"][i], crop, atol=1e-4)
    assert len(corners) > 12
    tops = [top for top, _ in corners]
    assert min(tops) <= 1 and max(tops) >= 9


def test_every_corner_can_be_drawn() -> None:
    out = DepthAugment(4, 4, **PLAIN)(coordinates(400, 5, 6), seeded(0))
    u, v, _ = source_pixels(out["depth"][:, 0])
    counts = torch.bincount(v[:, 0, 0] * 3 + u[:, 0, 0], minlength=6)
    assert counts.min() > 40 and len(counts) == 6


def test_eval_is_the_centre() -> None:
    batch = noise(3, 480, 640)
    augment = DepthAugment(**AUGMENTATIONS["fcrn_nyu"]).eval()
    out = augment(batch)
    assert torch.equal(out["depth"], batch["depth"][:, :, 1::2, 1::2][:, :, 6:234, 8:312])
    for i in range(3):
        image = Image.fromarray(batch["target"][i].permute(1, 2, 0).numpy()).resize(
            (320, 240), Image.Resampling.BILINEAR
        )
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, 6:234, 8:312] / 255
        assert (out["target"][i] - expected).abs().max() < 1.1 / 255
    assert torch.equal(augment(batch)["target"], out["target"])
    assert out["name"] is batch["name"] and batch["target"].dtype == torch.uint8


def test_a_plane_stays_a_plane() -> None:
    """Inverse depth of a plane is affine in the pixel, and is so still after scale, rotation, crop, flip and resize."""
    height, width = 240, 320
    v, u = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    batch = noise(8, height, width)
    batch["depth"] = (1 / (0.1 + 0.3 * u + 0.2 * v)).expand(8, 1, -1, -1).contiguous()
    depth = DepthAugment(100, 120, resize=(200, None), crop_size=(150, 200), rotate=20)(batch, seeded(5))["depth"]
    y, x = torch.meshgrid(torch.arange(100.0), torch.arange(120.0), indexing="ij")
    for one in depth[:, 0].double():
        inside = one > 0
        design = torch.stack([x[inside], y[inside], torch.ones_like(x[inside])], 1).double()
        inverse = 1 / one[inside]
        fit = torch.linalg.lstsq(design, inverse).solution
        residual = (design @ fit - inverse).abs().max()
        # The nearest file pixel is at most 0.71 pixels away; depth was divided by at most 1.5.
        assert residual < 1.5 * 0.75 * (0.3 / width + 0.2 / height)


def test_what_lies_outside_is_black_and_without_depth() -> None:
    batch = noise(8, 40, 40)
    batch["target"].fill_(200)
    out = DepthAugment(40, 40, scale=(1, 1), rotate=45, flip=0, color=(1, 1))(batch, seeded(0))
    outside = out["depth"][:, 0] == 0
    assert 0.02 < outside.float().mean() < 0.2
    black = (out["target"] == 0).all(1)
    assert torch.equal(black, outside) or (black != outside).float().mean() < 1e-3
    assert torch.allclose(out["target"].permute(0, 2, 3, 1)[~black], torch.tensor(200 / 255), atol=1e-4)
    smaller = DepthAugment(40, 40, scale=(0.5, 0.5), rotate=0, flip=0, color=(1, 1))(batch)
    inside = (smaller["depth"] > 0)[:, 0]
    assert inside[:, 10:30, 10:30].all() and int(inside.sum()) == 8 * 400
    assert torch.equal((smaller["target"] > 0).all(1), inside)


def test_depth_that_does_not_count() -> None:
    batch = noise(1, 4, 4)
    batch["depth"][0, 0] = torch.tensor([[math.nan, math.inf, -1, 0], [0.1, 0.5, 2, 9], [10, 10.5, 11, 3], [3] * 4])
    out = DepthAugment(4, 4, **PLAIN)(batch)["depth"][0, 0]
    assert torch.equal(out[0], torch.zeros(4)) and torch.equal(out[1:], batch["depth"][0, 0, 1:])
    out = DepthAugment(4, 4, **PLAIN, min_depth=0.1, max_depth=10)(batch)["depth"][0, 0]
    assert out.tolist() == [[0] * 4, [0, 0.5, 2, 9], [10, 0, 0, 3], [3] * 4]
    out = DepthAugment(4, 4, **PLAIN, drop_extremes=True)(batch)["depth"][0, 0]
    assert torch.equal(out[1:3], torch.tensor([[0, 0.5, 2, 9], [10, 10.5, 0, 3]]))
    # The limit is that of what the network sees: 12 m come to 8 m.
    batch["depth"].fill_(12)
    scaled = DepthAugment(4, 4, **{**PLAIN, "scale": (1.5, 1.5)}, max_depth=10)(batch)["depth"]
    assert torch.allclose(scaled, torch.tensor(8.0))
    assert (DepthAugment(4, 4, **PLAIN, max_depth=10)(batch)["depth"] == 0).all()


class TestColor:
    def changed(self, **arguments: Any) -> Tensor:
        """Colours (200,3) of a grey (0.4, 0.5, 0.6) image of two brightnesses after 200 draws."""
        batch = noise(200, 4, 4)
        batch["target"][:] = torch.tensor([102, 128, 153], dtype=torch.uint8).view(3, 1, 1)
        out = DepthAugment(4, 4, **{**PLAIN, **arguments})(batch, seeded(4))["target"]
        assert torch.allclose(out, out[:, :, :1, :1], atol=1e-6)
        return out[:, :, 0, 0] / torch.tensor([102, 128, 153]) * 255

    def test_channels(self) -> None:
        ratio = self.changed(color=(0.8, 1.2))
        assert 0.8 <= ratio.min() < 0.82 and 1.18 < ratio.max() <= 1.2001
        assert torch.corrcoef(ratio.T).fill_diagonal_(0).abs().max() < 0.25

    def test_brightness(self) -> None:
        ratio = self.changed(brightness=(0.75, 1.25))
        assert 0.75 <= ratio.min() < 0.77 and 1.23 < ratio.max() <= 1.2501
        assert torch.allclose(ratio, ratio[:, :1])

    def test_gamma(self) -> None:
        values = torch.tensor([102, 128, 153]) / 255
        exponent = (self.changed(gamma=(0.9, 1.1)) * values).log() / values.log()
        assert 0.9 <= exponent.min() < 0.905 and 1.095 < exponent.max() <= 1.1001
        assert torch.allclose(exponent, exponent[:, :1], atol=1e-4)

    def test_jitter(self) -> None:
        ratio = self.changed(jitter=(0.4, 0, 0))
        assert 0.6 <= ratio.min() < 0.63 and 1.37 < ratio.max() <= 1.4001
        spread = self.changed(jitter=(0, 0, 0.4)) * torch.tensor([102, 128, 153])
        grey = spread @ torch.tensor([0.299, 0.587, 0.114])
        assert torch.allclose(grey, grey[:1], atol=0.01)
        width = (spread[:, 2] - spread[:, 0]) / 51
        assert 0.6 <= width.min() < 0.63 and 1.37 < width.max() <= 1.4001

    def test_probability_and_bounds(self) -> None:
        ratio = self.changed(color=(0.8, 1.2), recolor=0.5)
        same = torch.isclose(ratio, torch.ones(())).all(1)
        assert 70 < int(same.sum()) < 130
        out = DepthAugment(4, 4, **{**PLAIN, "brightness": (1.25, 1.25), "color": (0.9, 0.9)})
        batch = noise(1, 4, 4)
        batch["target"].fill_(240)
        # Multiplied together before they are cut off, as published: 240 * 1.25 * 0.9 = 270.
        assert torch.allclose(out(batch)["target"], torch.ones(()))
        batch["target"].fill_(220)
        assert torch.allclose(out(batch)["target"], torch.tensor(220 * 1.125 / 255))
        assert torch.allclose(out.eval()(batch)["target"], torch.tensor(220 / 255))


class TestRandomNumbers:
    def test_same_generator_same_batch(self) -> None:
        batch = noise(4, 30, 40)
        augment = DepthAugment(24, 32, jitter=(0.2, 0.2, 0.2))
        first, again, other = (augment(batch, seeded(seed)) for seed in (5, 5, 6))
        for key in ("target", "depth"):
            assert torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key])
        torch.manual_seed(5)
        assert torch.equal(augment(batch)["target"], first["target"])

    def test_options_and_the_rest_of_the_batch_change_no_draw(self) -> None:
        batch = noise(5, 30, 40)
        full = DepthAugment(24, 32)(batch, seeded(1))
        some = DepthAugment(24, 32)({key: value[:2] for key, value in batch.items()}, seeded(1))
        for key in ("target", "depth"):
            assert torch.equal(full[key][:2], some[key])
        for options in ({"color": (1, 1)}, {"recolor": 0}, {"gamma": (0.9, 1.1), "jitter": (0.3, 0.3, 0.3)}):
            assert torch.equal(DepthAugment(24, 32, **options)(batch, seeded(1))["depth"], full["depth"])
        numbers = []
        jittered = DepthAugment(24, 32, jitter=(0.1, 0.1, 0.1))
        for augment in (jittered, DepthAugment(24, 32), DepthAugment(24, 32, **PLAIN), DepthAugment(24, 32).eval()):
            generator = seeded(1)
            augment(batch, generator)
            numbers.append(float(torch.rand((), generator=generator)))
        assert len(set(numbers)) == 1

    def test_autocast_changes_nothing(self) -> None:
        batch = noise(4, 60, 80)
        augment = DepthAugment(24, 32, resize=(30, 40), jitter=(0.3, 0.3, 0.3))
        expected = augment(batch, seeded(1))
        with torch.autocast("cpu", torch.bfloat16):
            out = augment(batch, seeded(1))
        for key in ("target", "depth"):
            assert out[key].dtype == torch.float32 and torch.equal(out[key], expected[key])


class TestSizes:
    def test_equal_sizes_are_collated_as_they_are(self) -> None:
        batch = noise(3, 6, 8)
        samples = [{key: batch[key][i] for key in batch} for i in range(3)]
        out = collate_depth(samples)  # type: ignore[arg-type]
        assert set(out) == {"target", "depth", "name"}
        assert torch.equal(out["target"], batch["target"]) and torch.equal(out["depth"], batch["depth"])

    def test_padding(self) -> None:
        sizes = [(6, 8), (5, 9), (6, 8)]
        samples = [{key: noise(1, *size)[key][0] for key in ("target", "depth", "name")} for size in sizes]
        out = collate_depth(samples)  # type: ignore[arg-type]
        assert out["size"] == sizes and out["target"].shape == (3, 3, 6, 9) and out["depth"].shape == (3, 1, 6, 9)
        for i, (height, width) in enumerate(sizes):
            assert torch.equal(out["target"][i, :, :height, :width], samples[i]["target"])
            assert torch.equal(out["depth"][i, :, :height, :width], samples[i]["depth"])
            assert out["target"][i, :, height:].sum() == 0 and out["depth"][i, :, :, width:].sum() == 0

    @pytest.mark.parametrize("resize", [(184, 612), (385, None), 300, None])
    @pytest.mark.parametrize("train", [True, False])
    def test_padding_never_shows(self, resize: Any, train: bool) -> None:
        sizes = [(375, 1242), (370, 1226), (376, 1241), (375, 1242)]
        samples = []
        for index, size in enumerate(sizes):
            batch = noise(1, *size)
            samples.append({"target": batch["target"][0], "depth": batch["depth"][0], "name": str(index)})
        augment = DepthAugment(172, 576, resize=resize, scale=(1, 1.2), jitter=(0.2, 0.2, 0.2)).train(train)
        out = augment(collate_depth(samples), seeded(3))  # type: ignore[arg-type]
        assert "size" not in out and out["name"] == ["0", "1", "2", "3"]
        for i in range(4):
            alone = augment(collate_depth([samples[i]] * 4), seeded(3))  # type: ignore[arg-type]
            for key in ("target", "depth"):
                assert torch.equal(out[key][i], alone[key][i])

    def test_an_image_smaller_than_the_window_is_named(self) -> None:
        with pytest.raises(
            ValueError, match=r"crop_size: \(228, 304\) does not fit into 0, \(480, 640\) resized to \(2"
        ):
            DepthAugment(228, 304, resize=(200, 320))(noise(2, 480, 640))
        batch = {key: value for key, value in noise(1, 20, 30).items() if key != "name"}
        with pytest.raises(ValueError, match=r"crop_size: \(24, 30\) does not fit into sample 0"):
            DepthAugment(24, 30)(batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 1}, "height: expected an integer of at least 2, got 1"),
        ({"resize": 0}, "resize: expected"),
        ({"resize": (240, 320, 3)}, "resize: expected"),
        ({"resize": (240.5, 320)}, "resize: expected"),
        ({"resize": 240.5}, "resize: expected"),
        ({"crop_size": 240}, "crop_size: expected"),
        ({"scale": 1.5}, r"scale: expected a range"),
        ({"jitter": 0.4}, "jitter: expected"),
        ({"crop_size": (240,)}, "crop_size: expected"),
        ({"crop_size": (240, None)}, "crop_size: expected"),
        ({"crop": "center"}, 'crop: expected "random" or "centre", got \'center\''),
        ({"scale": (1.5, 1)}, r"scale: expected a range \(low, high\), 0 < low <= high, got \(1.5, 1\)"),
        ({"scale": (0, 1)}, "scale: expected a range"),
        ({"gamma": (1,)}, "gamma: expected a range"),
        ({"rotate": -5}, "rotate: expected degrees"),
        ({"flip": 2}, "flip: expected a probability"),
        ({"recolor": -1}, "recolor: expected a probability"),
        ({"jitter": (0.4, 0.4)}, "jitter: expected brightness, contrast, saturation"),
        ({"jitter": (0.4, 0.4, 1.4)}, "jitter: expected"),
        ({"min_depth": 10, "max_depth": 10}, "min_depth, max_depth: expected 0 <= min_depth < max_depth"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthAugment(**{"height": 228, "width": 304, **arguments})


def test_wants_bytes_and_depth_of_their_size() -> None:
    batch = noise(2, 30, 40)
    augment = DepthAugment(20, 20)
    with pytest.raises(TypeError, match=r"target: expected uint8 \(B,3,h,w\), got torch.float32 \(2, 3, 30, 40\)"):
        augment({**batch, "target": batch["target"].float()})
    with pytest.raises(
        TypeError, match=r"depth: expected floating point \(2, 1, 30, 40\), got torch.float32 \(2, 1, 20"
    ):
        augment({**batch, "depth": batch["depth"][:, :, :20]})
    with pytest.raises(TypeError, match=r"depth: expected floating point"):
        augment({**batch, "depth": batch["depth"].to(torch.int32)})


def real(root: Path, name: str) -> DepthDataset:
    if "kitti" in name:
        crop = "kb" if name.startswith("bts") else None
        return RgbdFolder(root / "kitti_depth/rgb", root / "kitti_depth/depth", units_per_metre=256, crop=crop)  # type: ignore[arg-type]
    scene = root / "nyu/basement_0001a"
    return RgbdFolder(scene / "rgb_*", scene / "sync_depth_*", crop=(45, 472, 43, 608) if "bts" in name else None)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_recipes_on_real_frames(real_data: Path, name: str) -> None:
    dataset = real(real_data, name)
    batch = collate_depth([dataset[i] for i in range(3)])
    augment = DepthAugment(**AUGMENTATIONS[name])
    for _ in range(2):
        out = augment(batch, seeded(0))
        assert out["target"].shape[-2:] == out["depth"].shape[-2:] == augment.size
        assert out["target"].min() >= 0 and out["target"].max() <= 1
        measured = out["depth"] > 0
        assert (out["depth"] >= 0).all() and out["depth"].max() <= batch["depth"].max()
        # Of the whole frames, 0.72 of NYU and 0.2 of KITTI are measured, least of them near the border and the top.
        low, high = (0.1, 0.35) if "kitti" in name else (0.65, 0.95)
        assert low < float(measured.float().mean()) < high
        augment.eval()
