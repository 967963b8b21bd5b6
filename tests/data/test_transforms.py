import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from mdepth_fast.data import Augment, MotorcycleStereo, SequenceAugment, StereoAugment, SyntheticScenes
from mdepth_fast.data.transforms import adjust_color, image_pyramid


def random_batch(size: int = 4, sources: int = 2, height: int = 12, width: int = 20) -> dict:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, sources + 1, 3, height, width), generator=generator, dtype=torch.uint8)
    K = torch.tensor([[15.0, 0, 8], [0, 16, 5], [0, 0, 1]])
    T = torch.eye(4).repeat(size, sources, 1, 1)
    T[..., :3, 3] = torch.rand(size, sources, 3, generator=generator)
    return {
        "target": images[:, 0],
        "sources": images[:, 1:],
        "K": K.repeat(size, 1, 1),
        "source_K": K.repeat(size, sources, 1, 1),
        "T": T,
        "name": [str(i) for i in range(size)],
    }


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("augment", [Augment(flip=0, jitter=0), Augment(flip=1, jitter=1).eval()])
def test_pure_conversion(augment: Augment) -> None:
    batch = random_batch()
    out = augment(batch)
    assert set(out) == {*batch, "target_aug", "sources_aug", "pyramid"}
    for key in ("target", "sources"):
        assert out[key].dtype == torch.float32
        assert torch.equal(out[key], batch[key] / 255)
        assert torch.equal(out[f"{key}_aug"], out[key])
    for key in ("K", "source_K", "T", "name"):
        assert out[key] is batch[key]
    assert batch["target"].dtype == torch.uint8  # the input is left alone


@pytest.mark.parametrize("size", [(12, 20), (9, 23)])
def test_pyramid_averages_areas(size: tuple[int, int]) -> None:
    out = Augment(flip=0, jitter=0)(random_batch(height=size[0], width=size[1]))
    height, width = size
    for level in out["pyramid"]:
        assert level.shape == (4, 3, height, width)
        height, width = height // 2, width // 2
    assert out["pyramid"][0] is out["target"]
    if size == (12, 20):
        blocks = out["target"].unflatten(-1, (10, 2)).unflatten(-3, (6, 2)).mean((-3, -1))
        assert torch.allclose(out["pyramid"][1], blocks)
    assert torch.allclose(image_pyramid(torch.full((1, 1, 9, 23), 0.3), 4)[3], torch.tensor(0.3))
    with pytest.raises(ValueError, match="levels: 5 need a larger image"):
        image_pyramid(torch.rand(1, 3, 4, 9), 5)


def test_flip_mirrors_images_and_geometry() -> None:
    batch = random_batch()
    batch["depth"] = torch.rand(4, 1, 12, 20)
    out = Augment(flip=1, jitter=0)(batch)
    for key in ("target", "sources"):
        assert torch.equal(out[key], batch[key].flip(-1) / 255)
    assert torch.equal(out["depth"], batch["depth"].flip(-1))
    assert torch.equal(out["K"][:, 0, 2], torch.full((4,), 11.0)) and torch.equal(
        out["source_K"][..., 0, 2], torch.full((4, 2), 11.0)
    )
    assert torch.equal(out["T"][..., 0, 3], -batch["T"][..., 0, 3])
    assert torch.equal(out["T"][..., 1:3, 3], batch["T"][..., 1:3, 3])


def test_flips_are_per_sample() -> None:
    batch = random_batch(size=64)
    out = Augment(flip=0.5, jitter=0)(batch, seeded(0))
    flipped = (out["K"][:, 0, 2] == 11).tolist()
    assert 20 < sum(flipped) < 44
    for i, mirrored in enumerate(flipped):
        for key in ("target", "sources"):
            straight = batch[key][i] / 255
            assert torch.equal(out[key][i], straight.flip(-1) if mirrored else straight)
        assert (out["source_K"][i, :, 0, 2] == (11 if mirrored else 8)).all()
        assert torch.equal(out["T"][i, :, 0, 3], batch["T"][i, :, 0, 3] * (-1 if mirrored else 1))


@pytest.mark.parametrize("kind", ["motorcycle", "synthetic"])
def test_flip_keeps_photo_consistency(warp_errors, kind: str) -> None:
    if kind == "motorcycle":  # source_K differs from K; at the size of the ground truth
        sample, count = MotorcycleStereo(500, 741, evaluation=True)[0], 1
    else:
        sample, count = SyntheticScenes(1, 64, 96, sources=(-1, 1, "stereo"), evaluation=True)[0], 3
    straight = [warp_errors(sample, s)[0] for s in range(count)]
    out = Augment(flip=1, jitter=0)(default_collate([sample]))
    mirrored = {key: out[key][0] for key in ("target", "sources", "K", "source_K", "T", "depth")}
    for key in ("target", "sources"):
        mirrored[key] = mirrored[key] * 255
    for s in range(count):
        assert warp_errors(mirrored, s)[0] == pytest.approx(straight[s], rel=1e-3)
        # Images flipped under the old geometry do not fit.
        unfit = {**mirrored, "T": sample["T"], "K": sample["K"], "source_K": sample["source_K"]}
        assert warp_errors(unfit, s)[0] > 1.5 * straight[s]


def test_jitter_changes_network_inputs_only_and_is_shared_by_frames() -> None:
    batch = random_batch(size=32)
    batch["sources"] = batch["target"][:, None].repeat(1, 2, 1, 1, 1)  # equal frames must stay equal
    out = Augment(flip=0, jitter=0.5)(batch, seeded(1))
    assert torch.equal(out["target"], batch["target"] / 255)
    assert torch.equal(out["sources"], batch["sources"] / 255)
    for s in range(2):
        assert torch.equal(out["sources_aug"][:, s], out["target_aug"])
    changed = (out["target_aug"] != out["target"]).flatten(1).any(1)
    assert 8 < int(changed.sum()) < 24
    difference = (out["target_aug"] - out["target"])[changed]
    assert len({round(float(d), 5) for d in difference.mean((1, 2, 3))}) == int(changed.sum())  # a draw per sample
    assert out["target_aug"].min() >= 0 and out["target_aug"].max() <= 1


def test_same_generator_same_batch() -> None:
    batch = random_batch(size=8)
    first, second = (Augment()(batch, seeded(5)) for _ in range(2))
    for key in ("target", "sources", "target_aug", "sources_aug", "K", "T"):
        assert torch.equal(first[key], second[key])
    other = Augment()(batch, seeded(6))
    assert not torch.equal(first["target_aug"], other["target_aug"])
    torch.manual_seed(5)
    assert torch.equal(Augment()(batch)["target_aug"], first["target_aug"])


def factors(**changed: float) -> Tensor:
    values = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, **changed}
    return torch.tensor([list(values.values())], dtype=torch.float64)


def test_color_adjustments_follow_their_definitions() -> None:
    image = torch.rand(1, 3, 6, 7, dtype=torch.float64, generator=seeded(0))
    grey = (image * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1, keepdim=True)
    assert torch.allclose(adjust_color(image, factors()), image, atol=1e-12)
    assert torch.allclose(adjust_color(image, factors(brightness=1.2)), (image * 1.2).clamp(0, 1))
    contrast = grey.mean() + 0.8 * (image - grey.mean())
    assert torch.allclose(adjust_color(image, factors(contrast=0.8)), contrast)
    assert torch.allclose(adjust_color(image, factors(saturation=0.0)), grey.expand_as(image))
    for shift in (0.1, -0.1, 0.37):
        turned = adjust_color(image, factors(hue=shift))[0]
        for pixel, result in zip(image[0].flatten(1).T.tolist(), turned.flatten(1).T.tolist()):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            assert np.allclose(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value), result)


def test_hue_of_grey_black_and_white_stays() -> None:
    image = torch.tensor([0.0, 0.5, 1.0]).repeat(3, 1).view(1, 3, 1, 3)
    assert torch.equal(adjust_color(image, factors(hue=0.1).float()), image)


def test_order_and_range_of_the_jitter_vary() -> None:
    image = torch.rand(1, 3, 6, 7, generator=seeded(0))
    amounts = factors(brightness=1.2, contrast=0.8, saturation=1.2, hue=0.1).float()
    assert not torch.allclose(adjust_color(image, amounts), adjust_color(image, amounts, (3, 2, 1, 0)), atol=1e-3)
    batch = random_batch(size=200, height=8, width=8)
    batch["target"].fill_(128)
    only_brightness = Augment(flip=0, jitter=1, contrast=0, saturation=0, hue=0)(batch, seeded(2))
    ratio = (only_brightness["target_aug"] / only_brightness["target"]).flatten(1).mean(1)
    assert ratio.min() == pytest.approx(0.8, abs=0.01) and ratio.max() == pytest.approx(1.2, abs=0.01)
    assert float(ratio.mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip": 1.5}, "flip: expected a probability"),
        ({"jitter": -0.1}, "jitter: expected a probability"),
        ({"brightness": -0.2}, "brightness: expected a value in"),
        ({"hue": 0.6}, "hue: expected a value in"),
        ({"levels": 0}, "levels: expected at least 1"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**arguments)


def test_wants_bytes() -> None:
    batch = random_batch()
    with pytest.raises(TypeError, match=r"target: expected uint8 \(B,3,H,W\), got torch.float32 \(4, 3, 12, 20\)"):
        Augment()({**batch, "target": batch["target"].float()})
    with pytest.raises(TypeError, match=r"sources: expected uint8 \(B,S,3,H,W\), got torch.uint8 \(4, 3, 12, 20\)"):
        Augment()({**batch, "sources": batch["sources"][:, 0]})


def pairs(size: int = 6) -> dict:
    """Rectified pairs of which every other one has the right image for its target."""
    batch = random_batch(size, sources=1)
    batch["source_K"] = batch["source_K"].clone()
    batch["source_K"][..., 0, 2] += 3
    batch["T"] = torch.eye(4).repeat(size, 1, 1, 1)
    batch["T"][..., 0, 3] = -0.5
    for key, other in (("target", "sources"), ("K", "source_K")):
        one, two = batch[key].clone(), batch[other][:, 0].clone()
        batch[key][1::2], batch[other][1::2, 0] = two[1::2], one[1::2]
    batch["T"][1::2, :, 0, 3] = 0.5
    return batch


@pytest.mark.parametrize("flip", [0, 1])
def test_pairs_come_out_left_image_first(flip: int) -> None:
    batch = pairs()
    left, right = batch["target"].clone(), batch["sources"][:, 0].clone()
    left[1::2], right[1::2] = batch["sources"][1::2, 0], batch["target"][1::2]
    out = StereoAugment(flip=flip, jitter=0)(batch)
    if flip:
        left, right = right.flip(-1), left.flip(-1)
    assert torch.equal(out["target"], left / 255) and torch.equal(out["sources"][:, 0], right / 255)
    assert torch.equal(out["pyramid"][0], out["target"]) and torch.equal(out["target_aug"], out["target"])
    # The baseline, and how far the principal points are apart, stay those of the pair.
    assert torch.equal(out["T"][:, 0, 0, 3], torch.full((6,), -0.5))
    assert torch.equal(out["source_K"][:, 0, 0, 2] - out["K"][:, 0, 2], torch.full((6,), 3.0))
    assert torch.equal(out["K"][:, 0, 2], torch.full((6,), 8.0 if not flip else 20 - 1 - 11.0))
    straight = StereoAugment(flip=1, jitter=1).eval()(batch)
    for key in ("target", "sources"):
        assert torch.equal(straight[key], batch[key] / 255)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mirrored_and_swapped_pair_is_a_pair(warp_errors, side: str) -> None:
    """The true disparity of the pair explains the mirrored one, if its geometry is mirrored with it."""
    sample = MotorcycleStereo(125, 185, evaluation=True)[0]
    plain = {key: value for key, value in sample.items() if key not in ("depth", "image")}
    if side == "right":
        right = MotorcycleStereo(125, 185, sides=("right",))[0]
        plain = dict(right)
    out = StereoAugment(flip=1, jitter=0)(default_collate([plain]))
    # Mirrored once more, what was the left image is the source: seen from there, the ground truth fits.
    back = Augment(flip=1, jitter=0)({**out, **{k: (255 * out[k]).round().byte() for k in ("target", "sources")}})
    T = torch.linalg.inv(back["T"][0])
    found = {"target": back["sources"][0, 0] * 255, "sources": back["target"] * 255, "K": back["source_K"][0, 0]}
    found |= {"source_K": back["K"], "T": T, "depth": sample["depth"]}
    assert warp_errors(found)[0] == pytest.approx(warp_errors(sample)[0], rel=1e-3)


def test_colours_of_a_pair_change_alike() -> None:
    batch = pairs(64)
    batch["target"][:] = batch["sources"][:, 0]
    out = StereoAugment(flip=0, jitter=0.5)(batch, seeded(1))
    clean, changed = out["target"], out["target_aug"]
    assert torch.equal(out["sources_aug"][:, 0], changed) and torch.equal(out["sources"][:, 0], clean)
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(clean, changed)])
    assert 20 < int(kept.sum()) < 44
    # log(changed) = gamma * log(clean) + log(factor of the channel), where nothing was cut.
    for image, other in zip(clean[~kept], changed[~kept]):
        factors = []
        for x, y in zip(image, other):
            inside = (x > 0) & (y > 0) & (y < 1)
            gamma, factor = np.polyfit(x[inside].double().log(), y[inside].double().log(), 1)
            assert 0.8 <= gamma <= 1.2
            factors.append(np.exp(factor))
        assert min(factors) >= 0.5 * 0.8 and max(factors) <= 2 * 1.2 and max(factors) / min(factors) <= 1.5
    assert changed.min() >= 0 and changed.max() == 1


def test_bad_arguments_of_pairs() -> None:
    with pytest.raises(ValueError, match=r"sources: expected one, the other image of a rectified pair, got 2"):
        StereoAugment()(random_batch())
    with pytest.raises(ValueError, match="depth: expected none in training"):
        StereoAugment()({**pairs(), "depth": torch.ones(6, 1, 12, 20)})
    with pytest.raises(ValueError, match=r"gamma: expected a range \(low, high\), 0 < low <= high, got \(1.2, 0.8\)"):
        StereoAugment(gamma=(1.2, 0.8))


class TestSequenceAugment:
    def test_without_numbers_it_is_a_conversion(self) -> None:
        batch = random_batch()
        for augment in (SequenceAugment(jitter=0, scale=(1.0, 1.0)), SequenceAugment().eval()):
            out = augment(batch, seeded(0))
            for key in ("target", "sources"):
                assert torch.equal(out[key], batch[key] / 255) and torch.equal(out[f"{key}_aug"], out[key])
            assert all(torch.equal(out[key], batch[key]) for key in ("K", "source_K", "T"))
        assert batch["target"].dtype == torch.uint8

    def test_a_cut_keeps_points_under_their_pixels(self) -> None:
        """Of images whose colours are ray directions: at every pixel the new K gives the ray that the colour says."""
        batch = random_batch(height=24, width=40)
        v, u = torch.meshgrid(torch.arange(24.0), torch.arange(40.0), indexing="ij")
        batch["target"] = torch.stack([6 * u, 6 * v, torch.zeros_like(u)]).expand(4, 3, 24, 40).byte()
        batch["sources"] = batch["target"][:, None].expand(-1, 2, -1, -1, -1)
        before = torch.linalg.inv(batch["K"][0])
        out = SequenceAugment(jitter=0, scale=(1.05, 1.5))(batch, seeded(3))
        assert len({tuple(K.flatten().tolist()) for K in out["K"]}) == 4
        torch.testing.assert_close(out["source_K"], out["K"][:, None].expand(-1, 2, -1, -1))
        for n in range(4):
            assert (out["K"][n].diagonal()[:2] / batch["K"][n].diagonal()[:2]).min() >= 1.05
            pixels = torch.stack([u, v, torch.ones_like(u)]).flatten(1)
            rays = torch.linalg.inv(out["K"][n]) @ pixels
            for image in (out["target"][n], *out["sources"][n]):
                was = torch.cat([image[:2].flatten(1) * 255 / 6, torch.ones(1, 24 * 40)])
                inside = ((was[:2] > 0.5) & (was[:2] < torch.tensor([[38.5], [22.5]]))).all(0)
                assert inside.float().mean() > 0.8
                assert ((before @ was - rays).abs() < 0.1 / 15)[:, inside].all()

    def test_colours_change_alike_in_all_frames_and_in_the_loss(self) -> None:
        batch = random_batch()
        batch["sources"] = batch["target"][:, None].expand(-1, 2, -1, -1, -1)
        augment = SequenceAugment(scale=(1.0, 1.0))
        out = augment(batch, seeded(1))
        torch.testing.assert_close(out["sources"], out["target"][:, None].expand(-1, 2, -1, -1, -1))
        assert out["target"] is out["target_aug"] and out["pyramid"][0] is out["target"]
        assert not torch.equal(out["target"], batch["target"] / 255)
        # A power and a factor per sample and channel: logarithms lie on a line.
        x, y = (batch["target"].double() / 255).log(), out["target"].double().log()
        for n in range(4):
            for channel in range(3):
                keep = x[n, channel].isfinite() & (y[n, channel] < 0)
                slope, offset = np.polyfit(x[n, channel][keep].numpy(), y[n, channel][keep].numpy(), 1)
                assert 0.8 <= slope <= 1.2 and np.log(0.4) <= offset <= np.log(2.4)
                fit = slope * x[n, channel][keep] + offset
                assert (fit - y[n, channel][keep]).abs().max() < 1e-4
        clean = SequenceAugment(scale=(1.0, 1.0), colors_in_loss=False)(batch, seeded(1))
        torch.testing.assert_close(clean["target"], batch["target"] / 255)
        torch.testing.assert_close(clean["target_aug"], out["target_aug"])

    def test_draws_do_not_depend_on_the_options(self) -> None:
        batch = random_batch()
        plain = SequenceAugment(jitter=0)(batch, seeded(2))
        torch.testing.assert_close(SequenceAugment(jitter=1)(batch, seeded(2))["K"], plain["K"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"scale": (0.9, 1.1)}, r"scale: expected factors of at least 1, got \(0.9, 1.1\)"),
            ({"gamma": (1.2, 0.8)}, r"gamma: expected a range \(low, high\)"),
            ({"color": (1.0,)}, "color: expected a range"),
            ({"flip": 2}, "flip: expected a probability"),
        ],
    )
    def test_bad_options(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SequenceAugment(**options)

    def test_ground_truth_is_refused_in_training_only(self) -> None:
        batch = {**random_batch(), "depth": torch.ones(4, 1, 12, 20)}
        with pytest.raises(ValueError, match="depth: expected none in training"):
            SequenceAugment()(batch)
        assert SequenceAugment().eval()(batch)["depth"] is batch["depth"]
