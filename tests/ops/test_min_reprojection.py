import numpy as np
import oracles
import pytest
import torch
from scenes import relative_error, scene

from mdepth_fast.ops import inverse_warp, min_reprojection, photometric_loss

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


@BACKENDS
@pytest.mark.parametrize(
    "options",
    [{}, {"padding": "zeros"}, {"auto_mask": False}, {"ssim_weight": 0.0}, {"ssim_weight": 1.0, "padding": "zeros"}],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 2, 2, 1), (2, 5, 7, 3)])
def test_against_loops(backend, options, size):
    batch, height, width, count = size
    target, sources, depths, K, T, source_K = scene(batch, height, width, count, 2, torch.float64, motion=0.2)
    loss, selection = min_reprojection(target, sources, depths, K, T, source_K=source_K, backend=backend, **options)
    for scale, depth in enumerate(depths):
        total = 0.0
        for b in range(batch):
            each, chosen = oracles.min_reprojection(
                *(t[b].numpy() for t in (target, sources)),
                depth[b, 0].numpy(),
                *(t[b].numpy() for t in (K, T, source_K)),
                **options,
            )
            total += each
            np.testing.assert_array_equal(selection[scale][b, 0].numpy(), chosen)
        np.testing.assert_allclose(loss[scale].item(), total / (batch * height * width), rtol=1e-11)


@BACKENDS
def test_a_single_map_and_a_sequence_agree(backend):
    target, sources, depths, K, T, source_K = scene(2, 9, 11, 2, 3)
    many = min_reprojection(target, sources, depths, K, T, source_K=source_K, backend=backend)
    assert many.loss.shape == (3,) and len(many.selection) == 3
    for s, depth in enumerate(depths):
        one = min_reprojection(target, sources, depth, K, T, source_K=source_K, backend=backend)
        assert one.loss.shape == () and one.selection.shape == (2, 1, 9, 11) and one.selection.dtype == torch.int8
        torch.testing.assert_close(one.loss, many.loss[s])
        assert torch.equal(one.selection, many.selection[s])


@pytest.mark.parametrize("options", [{}, {"padding": "zeros"}, {"auto_mask": False}], ids=str)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_gradients_equal_the_references_in_double(options, count):
    inputs = scene(2, 34, 70, count, 2, torch.float64, motion=0.1)
    results = []
    for backend in ("cpu", "reference"):
        target, sources, depths, *cameras = inputs
        leaves = [t.clone().requires_grad_() for t in (*depths, *cameras)]
        loss, _ = min_reprojection(
            target, sources, leaves[:2], leaves[2], leaves[3], source_K=leaves[4], backend=backend, **options
        )
        results.append(torch.autograd.grad((loss * torch.tensor([0.3, 2.0])).sum(), leaves))
    for got, want in zip(*results):
        assert relative_error([got], [want]) < 1e-9


@BACKENDS
def test_ties_go_to_identity_then_to_the_lower_source(backend):
    target, sources, depths, K, _, _ = scene(1, 6, 8, 2)
    still = torch.eye(4).repeat(1, 2, 1, 1)
    sources = sources[:, :1].repeat(1, 2, 1, 1, 1)
    result = min_reprojection(target, sources, depths[0], K, still, backend="cpu")
    assert (result.selection == -1).all()  # warping by nothing is the identity, bit for bit
    result = min_reprojection(target, sources, depths[0], K, still, auto_mask=False, backend=backend)
    assert (result.selection == 0).all()


@BACKENDS
def test_identity_noise_is_added_to_the_identity_error(backend):
    target, sources, depths, K, T, _ = scene(2, 6, 8, 2)
    inputs = target, sources, depths[0], K, T
    off = min_reprojection(*inputs, identity_noise=torch.full((2, 2, 6, 8), 10.0), backend=backend)
    unmasked = min_reprojection(*inputs, auto_mask=False, backend=backend)
    torch.testing.assert_close(off.loss, unmasked.loss)
    assert torch.equal(off.selection, unmasked.selection)
    noise = torch.zeros(2, 2, 6, 8)
    noise[:, 1] = -5.0
    low = min_reprojection(*inputs, identity_noise=noise, backend=backend)
    want = photometric_loss(sources[:, 1], target).mean() - 5
    torch.testing.assert_close(low.loss, want)
    assert (low.selection == -1).all()


@BACKENDS
def test_points_behind_the_camera_never_win(backend):
    target, sources, depths, K, T, _ = scene(1, 8, 40, 2)
    depth = depths[0].clone()
    depth[..., 10:20] = -3.0
    depth.requires_grad_()
    masked = min_reprojection(target, sources, depth, K, T, backend=backend)
    assert (masked.selection[..., 10:20] == -1).all()
    free = min_reprojection(target, sources, depth, K, T, auto_mask=False, backend=backend)
    assert (free.selection[..., 10:20] == -1).all() and (free.selection[..., :10] >= 0).all()
    errors = torch.stack(
        [photometric_loss(inverse_warp(sources[:, s], depth, K, T[:, s])[0], target) for s in range(2)]
    ).amin(0)
    errors[..., 10:20] = 0  # nothing is left there: such a pixel counts 0 and stays in the mean
    torch.testing.assert_close(free.loss, errors.mean())
    (grad,) = torch.autograd.grad(free.loss, depth)
    assert (grad[..., 10:20] == 0).all() and torch.isfinite(grad).all() and (grad != 0).any()


@BACKENDS
@pytest.mark.parametrize("auto_mask", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["target", "sources", "depth", "K", "T", "source_K"])
def test_non_finite_input_gives_a_non_finite_loss(backend, auto_mask, value, where):
    target, sources, depths, K, T, source_K = scene(1, 9, 33, 2)
    tensors = dict(target=target, sources=sources, depth=depths[0], K=K, T=T, source_K=source_K)
    broken = tensors[where].clone()
    broken[(0,) * (broken.dim() - 2) + (1, 2) if where in ("target", "sources", "depth") else (0,) * broken.dim()] = (
        value
    )
    tensors[where] = broken
    if where == "sources" and not auto_mask:  # a pixel that no warp reads is no part of the loss: read it
        tensors["T"] = torch.eye(4).repeat(1, 2, 1, 1)
        tensors["sources"] = tensors["sources"][:, :1].repeat(1, 2, 1, 1, 1)
        tensors["source_K"] = K[:, None].repeat(1, 2, 1, 1)
    loss, _ = min_reprojection(**tensors, auto_mask=auto_mask, backend=backend)
    assert not torch.isfinite(loss)


def test_a_static_pair_is_masked_out_and_sends_no_gradient():
    target, _, depths, K, T, _ = scene(1, 20, 30, 1)
    depth = depths[0].clone().requires_grad_()
    result = min_reprojection(target, target[:, None], depth, K, T)
    assert (result.selection == -1).all() and result.loss.item() < 1e-6
    result.loss.backward()
    assert (depth.grad == 0).all()


def test_nothing_but_the_gradients_is_kept_for_backward():
    target, sources, depths, K, T, _ = scene(2, 32, 48, 2, 4)
    depths = [d.requires_grad_() for d in depths]
    T.requires_grad_()
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = min_reprojection(target, sources, depths, K, T).loss
    inputs = {t.untyped_storage().data_ptr() for t in (target, sources, *depths, K, T)}
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    kept = sum(size for pointer, size in kept.items() if pointer not in inputs)
    maps, matrices = 4 * 2 * 32 * 48 * 4, 4 * 2 * 2 * 12 * 8
    small = 4096  # the 3x4 matrices of the projection itself
    assert maps + matrices <= kept <= maps + matrices + small
    loss.sum().backward(retain_graph=True)
    first = depths[0].grad.clone()
    loss.sum().backward()
    torch.testing.assert_close(depths[0].grad, 2 * first)


def test_no_gradient_is_computed_when_nobody_asks():
    target, sources, depths, K, T, _ = scene(1, 12, 18, 2, 2)
    with torch.no_grad():
        loss, _ = min_reprojection(target, sources, [d.clone().requires_grad_() for d in depths], K, T)
    assert not loss.requires_grad
    only_pose = T.clone().requires_grad_()
    loss, _ = min_reprojection(target, sources, depths, K, only_pose)
    loss.sum().backward()
    assert (only_pose.grad[..., :3, :] != 0).any()


def test_errors():
    target, sources, depths, K, T, _ = scene(2, 6, 7, 2)
    good = dict(target=target, sources=sources, depth=depths[0], K=K, T=T)
    for change, error, message in [
        ({"target": target[:, :1]}, ValueError, r"^target: expected shape \(B, 3, H, W\).*got \(2, 1, 6, 7\)"),
        ({"sources": sources[:, 0]}, ValueError, r"^sources: expected shape \(B, S, 3, H, W\)"),
        ({"sources": sources[:, :0], "T": T[:, :0]}, ValueError, r"^sources: expected 1 to 127 sources"),
        ({"sources": sources[:1]}, ValueError, r"^sources: expected shape .*got \(1, 2, 3, 6, 7\)"),
        ({"depth": []}, TypeError, r"^depth: expected a tensor or a non-empty sequence"),
        ({"depth": [depths[0], depths[0][..., :3]]}, ValueError, r"^depth\[1\]: expected shape .*got \(2, 1, 6, 3\)"),
        ({"K": K[0]}, ValueError, r"^K: expected shape"),
        ({"K": K[:, :, :2]}, ValueError, r"^K: expected shape \(B, 3, 3\) = \(2, 3, 3\), got \(2, 3, 2\)"),
        ({"T": T[:, 0]}, ValueError, r"^T: expected shape \(B, S, 4, 4\)"),
        ({"T": T[:, :1]}, ValueError, r"^T: expected shape .*\(2, 2, 4, 4\), got \(2, 1, 4, 4\)"),
        ({"source_K": K}, ValueError, r"^source_K: expected shape"),
        ({"identity_noise": target}, ValueError, r"^identity_noise: expected shape .*\(2, 2, 6, 7\)"),
        ({"K": K.to("meta")}, ValueError, r"^K: expected device cpu, where target is, got meta"),
        ({"ssim_weight": -0.1}, ValueError, r"^ssim_weight"),
        ({"padding": 0}, ValueError, r"^padding"),
        ({"depth": [depths[0]] * 17}, ValueError, r"^depth: expected at most 16, got 17"),
    ]:
        with pytest.raises(error, match=message):
            min_reprojection(**{**good, **change})
    thin = {name: value[..., :1] if value.dim() > 3 and name not in ("T",) else value for name, value in good.items()}
    with pytest.raises(ValueError, match=r"^target: expected H and W of at least 2 .*got 6x1"):
        min_reprojection(**thin)
