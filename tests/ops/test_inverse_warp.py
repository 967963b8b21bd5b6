import numpy as np
import oracles
import pytest
import torch
from scenes import scene

from mdepth_fast.ops import inverse_warp, view_synthesis_loss

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


@BACKENDS
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("motion", [0.02, 0.5])
@pytest.mark.parametrize("size", [(5, 6), (9, 19)])
def test_against_loops(backend, padding, motion, size):
    _, sources, depths, K, T, source_K = scene(2, *size, 1, 1, torch.float64, motion=motion)
    arguments = sources[:, 0], depths[0], K, T[:, 0]
    warped, valid = inverse_warp(*arguments, source_K=source_K[:, 0], padding=padding, backend=backend)
    for b in range(2):
        want, front, inside = oracles.inverse_warp(
            *(t[b].numpy() if t.dim() != 4 or t.shape[1] != 1 else t[b, 0].numpy() for t in arguments),
            source_K[b, 0].numpy(),
            padding,
        )
        np.testing.assert_allclose(warped[b].numpy(), want, rtol=0, atol=1e-10)
        np.testing.assert_array_equal(valid[b, 0].numpy(), inside)
        assert front.any()


@BACKENDS
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_identity_pose_returns_the_image(backend, padding):
    _, sources, depths, K, *_ = scene(2, 31, 64)
    eye = torch.eye(4).repeat(2, 1, 1)
    warped, valid = inverse_warp(sources[:, 0], depths[0], K, eye, padding=padding, backend=backend)
    assert (warped - sources[:, 0]).abs().max() < 1e-5
    if backend == "cpu":  # coordinates are kept as shifts from the pixel, so this is exact
        assert valid.all()


@BACKENDS
def test_whole_pixel_shift(backend):
    """A fronto-parallel plane seen from one baseline to the side moves by f b / z pixels: 2 here."""
    source = torch.rand(1, 2, 6, 20)
    K = torch.tensor([[[10.0, 0, 9.5], [0, 10.0, 2.5], [0, 0, 1]]])
    T = torch.eye(4)[None].clone()
    T[0, 0, 3] = 0.4
    warped, valid = inverse_warp(source, torch.full((1, 1, 6, 20), 2.0), K, T, padding="zeros", backend=backend)
    torch.testing.assert_close(warped[..., :-2], source[..., 2:], atol=1e-5, rtol=0)
    assert (warped[..., -2:].abs() < 1e-4).all() and not valid[..., -2:].any()


@BACKENDS
def test_points_behind_the_camera_are_invalid_and_send_no_gradient(backend):
    _, sources, depths, K, T, _ = scene(1, 8, 9)
    depth = depths[0].clone()
    depth[..., :4, :] = -1.0
    depth[..., 4, :] = 0.0
    depth.requires_grad_()
    still = torch.eye(4)[None]
    source = sources[:, 0].clone().requires_grad_()
    warped, valid = inverse_warp(source, depth, K, still, backend=backend)
    assert not valid[..., :5, :].any() and (warped[..., :5, :] == 0).all()
    assert valid[..., 5:, 1:-1].any()
    T = T[:, 0].clone()
    warped, _ = inverse_warp(source, depth, K, T, backend=backend)
    warped.sum().backward()
    behind = (inverse_warp(source, depth, K, T, backend=backend)[0] == 0).all(1, keepdim=True)
    assert behind.any() and (depth.grad[behind] == 0).all() and torch.isfinite(depth.grad).all()


@BACKENDS
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_depth_shows_at_its_pixel_only(backend, value):
    _, sources, depths, K, T, _ = scene(1, 8, 40)
    depth = depths[0].clone()
    depth[0, 0, 3, 17] = value
    for pose in (T[:, 0], torch.eye(4)[None]):
        warped, _ = inverse_warp(sources[:, 0], depth, K, pose, backend=backend)
        bad = ~torch.isfinite(warped).all(1)
        assert bad.sum() == 1 and bad[0, 3, 17]


@BACKENDS
@pytest.mark.parametrize("name", ["K", "T", "source_K"])
def test_non_finite_camera_shows_everywhere(backend, name):
    _, sources, depths, K, T, source_K = scene(1, 8, 9)
    cameras = {"K": K.clone(), "T": T[:, 0].clone(), "source_K": source_K[:, 0].clone()}
    cameras[name][0, 0, 0] = torch.nan
    warped, _ = inverse_warp(sources[:, 0], depths[0], **cameras, backend=backend)
    assert warped.isnan().all()


@BACKENDS
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_sources_of_another_size_and_of_one_pixel(backend, padding):
    _, sources, depths, K, T, source_K = scene(1, 12, 17, dtype=torch.float64)
    for size in ((7, 9), (1, 1), (1, 5)):
        source = sources[:, 0, :, : size[0], : size[1]]
        arguments = {"source_K": source_K[:, 0], "padding": padding, "backend": backend}
        warped, valid = inverse_warp(source, depths[0], K, T[:, 0], **arguments)
        want, _, inside = oracles.inverse_warp(
            source[0].numpy(), depths[0][0, 0].numpy(), K[0].numpy(), T[0, 0].numpy(), source_K[0, 0].numpy(), padding
        )
        np.testing.assert_allclose(warped[0].numpy(), want, rtol=0, atol=1e-10)
        np.testing.assert_array_equal(valid[0, 0].numpy(), inside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", ["border", "zeros", "masked", "grey"])
def test_the_reference_survives_infinite_coordinates(dtype, padding):
    """Its sampler, torch's, crashes in the backward."""
    target, sources, depths, K, T, _ = scene(1, 8, 40, dtype=dtype)
    depth = depths[0].clone()
    depth[0, 0, 3, 17] = torch.inf
    depth.requires_grad_()
    if padding in ("border", "zeros"):
        warped, _ = inverse_warp(sources[:, 0], depth, K, T[:, 0], padding=padding, backend="reference")
        assert warped.isnan().sum() == 3 and warped[0, :, 3, 17].isnan().all()
        loss = warped.sum()
    else:
        loss = view_synthesis_loss(target, sources[:, 0], depth, K, T[:, 0], padding=padding, backend="reference").l1
    assert loss.isnan()
    (grad,) = torch.autograd.grad(loss, depth)
    assert not grad[0, 0, 3, 17].isfinite()


def test_huge_coordinates_do_not_crash():
    _, sources, depths, K, T, _ = scene(1, 8, 40)
    for depth in (torch.full_like(depths[0], 1e30), torch.full_like(depths[0], 1.1e-6)):
        warped, _ = inverse_warp(sources[:, 0], depth, K, T[:, 0] * torch.tensor([1, 1, 1, 1e6]), backend="cpu")
        assert warped.shape == (1, 3, 8, 40)


def test_errors():
    _, sources, depths, K, T, source_K = scene(2, 6, 7)
    good = {"source": sources[:, 0], "depth": depths[0], "K": K, "T": T[:, 0]}
    for change, error, message in [
        ({"source": sources}, ValueError, r"^source: expected shape \(B, C, H, W\)"),
        ({"depth": depths[0][:1]}, ValueError, r"^depth: expected shape .*\(2, 1, any, any\), got \(1, 1, 6, 7\)"),
        ({"K": K[:, :2]}, ValueError, r"^K: expected shape \(B, 3, 3\) = \(2, 3, 3\), got \(2, 2, 3\)"),
        ({"T": T}, ValueError, r"^T: expected shape \(B, 4, 4\) = \(2, 4, 4\), got \(2, 2, 4, 4\)"),
        ({"source_K": source_K}, ValueError, r"^source_K: expected shape"),
        ({"depth": depths[0].to("meta")}, ValueError, r"^depth: expected device cpu"),
        ({"padding": "reflect"}, ValueError, r"^padding: expected \"border\" or \"zeros\", got 'reflect'"),
        ({"depth": depths[0].long()}, TypeError, r"^depth: expected a floating-point tensor, got torch.int64"),
    ]:
        with pytest.raises(error, match=message):
            inverse_warp(**{**good, **change})
