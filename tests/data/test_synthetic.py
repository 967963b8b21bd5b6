import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from mdepth_fast.data import Sample, SyntheticScenes
from mdepth_fast.data.synthetic import _render, _Scene, _Surface


def seen_from_source(sample: Sample, s: int) -> torch.Tensor:
    """Pixels (H,W) of the target that no nearer surface hides in source s, nor touches within two pixels there."""
    depth = sample["depth"][0].double()
    height, width = depth.shape
    v, u = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    rays = torch.linalg.inv(sample["K"].double()) @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    T = sample["T"][s].double()
    x, y, z = sample["source_K"][s].double() @ (T[:3, :3] @ (rays * depth.flatten()) + T[:3, 3:])
    column, row = (x / z).round().long(), (y / z).round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixel = (row * width + column).clamp(0, height * width - 1)
    nearest = torch.full((height * width,), 1e3).double().scatter_reduce(0, pixel[inside], z[inside], "amin")
    nearest = -F.max_pool2d(-nearest.view(1, height, width), 5, 1, 2).flatten()
    return (inside & (z < 1.08 * nearest[pixel])).view(height, width)


@pytest.mark.parametrize("index", range(4))
def test_true_geometry_explains_every_source(warp, index: int) -> None:
    sample = SyntheticScenes(4, 96, 160, seed=3, sources=(-1, 1, "stereo"), evaluation=True)[index]
    target = sample["target"].double()
    for s in range(3):
        warped, valid = warp(sample, sample["depth"][0], s)
        valid &= seen_from_source(sample, s)
        assert valid.float().mean() > 0.6
        error = (warped - target).abs().mean(0)[valid]
        still = (sample["sources"][s].double() - target).abs().mean(0)[valid]
        # Of 255. What remains is interpolation, most of it where two textures meet.
        assert error.mean() < 0.15 * still.mean()
        assert error.median() < 2 and error.quantile(0.95) < 9
        # Depth wrong by a fifth is seen, by the forward motion too.
        wrong, _ = warp(sample, sample["depth"][0] * 1.2, s)
        assert (wrong - target).abs().mean(0)[valid].mean() > 2 * error.mean()


def test_depth_of_a_known_scene() -> None:
    surfaces = [_Surface.draw(np.random.default_rng(0)) for _ in range(8)]
    scene = _Scene(
        (np.array([-2.0, -1.0, -1.0]), np.array([2.0, 1.5, 8.0])),
        [(np.array([0.5, 0.5, 3.0]), np.array([1.5, 1.5, 4.0]))],
        [(np.array([-0.5, 0.0, 4.0]), 0.5)],
        surfaces,
    )
    K = np.array([[100.0, 0, 50], [0, 100.0, 40], [0, 0, 1]])
    _, depth = _render(scene, K, np.eye(4), 81, 101)
    assert depth[40, 50] == pytest.approx(8)  # far wall on the axis
    assert depth[80, 50] == pytest.approx(1.5 / 0.4)  # floor
    assert depth[0, 50] == pytest.approx(1 / 0.4)  # ceiling
    assert depth[40, 0] == pytest.approx(2 / 0.5)  # left wall
    assert depth[65, 80] == pytest.approx(3)  # front of the box: the ray is at x = 0.9, y = 0.75 there
    ray = np.array([-0.125, 0, 1])  # through the centre of the sphere: enters one radius before it
    column = 50 + 100 * ray[0]
    entry = 4 - 0.5 / np.linalg.norm(ray)
    assert depth[40, int(column)] == pytest.approx(entry, abs=2e-3)
    # A camera one metre ahead sees the far wall one metre nearer; turned about, the wall behind.
    pose = np.eye(4)
    pose[2, 3] = 1
    assert _render(scene, K, pose, 81, 101)[1][40, 50] == pytest.approx(7)
    pose[:3, :3] = np.diag([-1.0, 1, -1])
    assert _render(scene, K, pose, 81, 101)[1][40, 50] == pytest.approx(2)


def test_kept_samples_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = SyntheticScenes._draw
    monkeypatch.setattr(SyntheticScenes, "_draw", lambda self, index: drawn.append(index) or draw(self, index))
    scenes, fresh = SyntheticScenes(2, 32, 48, keep=True), SyntheticScenes(2, 32, 48)
    first = scenes[1]
    first["target"] = first["target"] * 0  # another sample in place of its own: the kept one stays
    again = scenes[1]
    assert drawn == [1]
    assert torch.equal(again["target"], fresh[1]["target"]) and torch.equal(again["sources"], fresh[1]["sources"])


def test_same_seed_same_sample() -> None:
    first, second = SyntheticScenes(5, 32, 48, seed=1)[4], SyntheticScenes(9, 32, 48, seed=1)[4]
    for key in ("target", "sources", "K", "source_K", "T"):
        assert torch.equal(first[key], second[key])
    for other in (SyntheticScenes(5, 32, 48, seed=2)[4], SyntheticScenes(5, 32, 48, seed=1)[3]):
        assert not torch.equal(first["target"], other["target"])
        assert not torch.equal(first["T"], other["T"])


def test_sources_and_poses() -> None:
    dataset = SyntheticScenes(2, 32, 48, sources=("stereo", -1, 1), baseline=0.3)
    assert dataset.sources == ("stereo", -1, 1)
    T = dataset[0]["T"].double()
    stereo = torch.eye(4).double()
    stereo[0, 3] = -0.3
    assert torch.allclose(T[0], stereo)
    assert torch.allclose(T[:, :3, :3] @ T[:, :3, :3].mT, torch.eye(3).double().expand(3, 3, 3), atol=1e-6)
    # The camera goes forward: points come nearer in the frame after, recede in the frame before.
    assert T[2, 2, 3] < 0 < T[1, 2, 3]
    assert SyntheticScenes(2, 32, 48, sources=(-1, "stereo"), known_pose=True).sources == ("known", "stereo")
    assert "depth" not in dataset[0]


def test_depth_is_dense_and_within_reach() -> None:
    dataset = SyntheticScenes(12, 24, 32, sources=(), evaluation=True)
    depth = torch.stack([dataset[i]["depth"] for i in range(12)])
    assert dataset[0]["sources"].shape == (0, 3, 24, 32)
    assert depth.shape == (12, 1, 24, 32)
    assert 0.5 < depth.min() < 2.5 and 6 < depth.max() < 16
    assert depth.flatten(1).std(1).min() > 0.3  # no flat scene


def test_loading_with_workers() -> None:
    dataset = SyntheticScenes(4, 24, 32)
    (batch,) = DataLoader(dataset, batch_size=4, num_workers=2)
    assert batch["target"].dtype == torch.uint8 and batch["sources"].shape == (4, 2, 3, 24, 32)
    assert torch.equal(batch["target"][3], dataset[3]["target"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": (0,)}, "sources: expected frame offsets other than 0"),
        ({"sources": ("left",)}, "sources: expected frame offsets"),
        ({"sources": (1, 1)}, "sources: expected each source once"),
        ({"sources": (9,)}, "sources: expected offsets within"),
        ({"seed": -1}, "seed"),
        ({"baseline": 0.0}, "baseline"),
        ({"length": 0}, "length"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticScenes(**arguments)
    with pytest.raises(TypeError, match="sources: expected a tuple"):
        SyntheticScenes(sources="stereo")  # type: ignore[arg-type]
