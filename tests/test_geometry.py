import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mdepth_fast import geometry
from mdepth_fast.ops import inverse_warp


def test_rotation_is_rodrigues_and_smooth_at_zero():
    vectors = torch.cat([torch.randn(20, 3), 1e-3 * torch.randn(20, 3), torch.zeros(1, 3)]).double()
    want = Rotation.from_rotvec(vectors.numpy()).as_matrix()
    np.testing.assert_allclose(geometry.rotation_from_axis_angle(vectors).numpy(), want, atol=1e-12)
    leaf = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(geometry.rotation_from_axis_angle, leaf)
    leaf = (1e-2 / 3**0.5 * torch.ones(1, 3, dtype=torch.float64)).requires_grad_()  # where the series takes over
    assert torch.autograd.gradcheck(geometry.rotation_from_axis_angle, leaf, eps=1e-7)


def test_pose_and_its_inverse():
    axis_angle, translation = torch.randn(2, 5, 3).double()
    forward, backward = (geometry.pose_matrix(axis_angle, translation, invert) for invert in (False, True))
    eye = torch.eye(4).double().expand(5, 4, 4)
    torch.testing.assert_close(forward @ backward, eye)
    torch.testing.assert_close(geometry.invert_pose(forward), backward)
    torch.testing.assert_close(forward[:, :3, 3], translation)


def test_euler_angles_are_rx_ry_rz_and_come_back():
    angles = (torch.rand(50, 3).double() - 0.5) * torch.tensor([6.28, 3.1, 6.28])
    R = geometry.rotation_from_euler(angles)
    # Intrinsic rotations about x, then y, then z are the product Rx Ry Rz.
    np.testing.assert_allclose(R.numpy(), Rotation.from_euler("XYZ", angles.numpy()).as_matrix(), atol=1e-12)
    torch.testing.assert_close(geometry.euler_from_rotation(R), angles, rtol=0, atol=1e-10)
    beyond = torch.tensor([4.0, 0.0, -4.0], requires_grad=True)
    clipped = geometry.rotation_from_euler(beyond)
    torch.testing.assert_close(clipped, geometry.rotation_from_euler(beyond.sign() * torch.pi))
    assert torch.equal(torch.autograd.grad(clipped.sum(), beyond)[0][::2], torch.zeros(2))


def test_pose_vectors_begin_with_the_translation_and_come_back():
    vector = torch.tensor([[0.1, -0.2, 0.3, 0.02, -0.03, 0.01], [0.0] * 6], dtype=torch.float64, requires_grad=True)
    T = geometry.pose_matrix_from_vector(vector)
    torch.testing.assert_close(T[:, :3, 3], vector[:, :3])
    torch.testing.assert_close(T[:, :3, :3], geometry.rotation_from_euler(vector[:, 3:]))
    torch.testing.assert_close(T[1], torch.eye(4).double())
    torch.testing.assert_close(geometry.pose_vector(T), vector)
    assert torch.autograd.gradcheck(lambda v: geometry.pose_vector(geometry.pose_matrix_from_vector(v)), vector)
    # To first order the negated vector is the inverse: the reverse motion of vid2depth.
    small = 1e-4 * vector.detach()
    off = geometry.pose_matrix_from_vector(-small) @ geometry.pose_matrix_from_vector(small) - torch.eye(4)
    assert 0 < off.abs().max() < 1e-7


def test_project_undoes_backproject():
    K = torch.tensor([[[30.0, 0, 11.2], [0, 28.0, 7.7], [0, 0, 1]]])
    depth = 1 + torch.rand(1, 1, 6, 9)
    pixels, z = geometry.project(geometry.backproject(depth, K), K)
    torch.testing.assert_close(z, depth)
    torch.testing.assert_close(pixels[0, 0], torch.arange(9.0).expand(6, 9), atol=1e-4, rtol=0)
    torch.testing.assert_close(pixels[0, 1], torch.arange(6.0)[:, None].expand(6, 9), atol=1e-4, rtol=0)


def test_scaling_the_intrinsics_keeps_points_under_their_pixels():
    """A point on the left edge of pixel 0 stays on the left edge, one in the image's middle stays in the middle."""
    K = torch.tensor([[30.0, 0, 11.2], [0, 28.0, 7.7], [0, 0, 1]])
    scaled = geometry.scale_intrinsics(K, 0.5, 2.0)
    ray = torch.linalg.inv(K) @ torch.tensor([-0.5, 8.0, 1.0])
    u, v, _ = scaled @ ray
    assert abs(u - -0.5) < 1e-5 and abs(v - ((8 + 0.5) * 2 - 0.5)) < 1e-4


def test_flipping_images_and_geometry_flips_the_warp():
    source, depth = torch.rand(1, 3, 12, 16), 2 + torch.rand(1, 1, 12, 16)
    K = torch.tensor([[[14.0, 0.3, 6.1], [0, 13.0, 5.0], [0, 0, 1]]])
    T = geometry.pose_matrix(torch.tensor([[0.02, -0.03, 0.01]]), torch.tensor([[0.1, 0.05, -0.2]]))
    warped, valid = inverse_warp(source, depth, K, T)
    flipped, flipped_valid = inverse_warp(source.flip(-1), depth.flip(-1), *geometry.flip_geometry(K, T, 16))
    torch.testing.assert_close(flipped.flip(-1), warped, atol=1e-5, rtol=0)
    assert torch.equal(flipped_valid.flip(-1), valid)


def test_disparity_in_pixels_and_depth() -> None:
    """KITTI's numbers: 0.54 m and 721.5 px, 10 m are 38.96 px, 80 m are 4.87 px."""
    disparity = geometry.disparity_from_depth(torch.tensor([10.0, 80.0, math.inf]), 721.5377, 0.54)
    torch.testing.assert_close(disparity, torch.tensor([38.963, 4.8704, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(geometry.depth_from_disparity(disparity[:2], 721.5377, 0.54), torch.tensor([10.0, 80.0]))
    # With principal points apart: of a point at infinity the disparity is minus the offset.
    shifted = geometry.disparity_from_depth(torch.tensor([2.0, math.inf]), 100.0, 0.5, 7.0)
    assert shifted.tolist() == [18.0, -7.0]
    assert geometry.depth_from_disparity(shifted, 100.0, 0.5, 7.0).tolist() == [2.0, math.inf]
    # In shares of the width it is the same depth.
    assert geometry.depth_from_disparity(shifted / 200, 0.5, 0.5, 7.0 / 200).tolist() == [2.0, math.inf]


def test_no_disparity_is_infinitely_far() -> None:
    values = torch.tensor([0.0, -0.0, -1.0, math.nan, 2.0], requires_grad=True)
    depth = geometry.depth_from_disparity(values, torch.tensor(4.0), 1.0)
    assert depth[:3].isinf().all() and (depth[:3] > 0).all()
    assert depth[3].isnan() and depth[4] == 2
    depth[[0, 1, 2, 4]].sum().backward()
    assert values.grad is not None and values.grad[[0, 1, 2, 4]].tolist() == [0, 0, 0, -1]
    with pytest.raises(ValueError, match="focal: expected a positive number, got -1"):
        geometry.depth_from_disparity(values, -1.0, 1.0)
    with pytest.raises(ValueError, match="baseline: expected a positive number, got 0"):
        geometry.disparity_from_depth(values, 1.0, 0.0)


def test_the_calibration_of_a_rectified_pair() -> None:
    K = torch.tensor([[100.0, 0, 50], [0, 110, 30], [0, 0, 1]])
    right_K = K.clone()
    right_K[0, 2] = 57
    T = torch.eye(4)
    T[:3, 3] = torch.tensor([-0.5, 0.002, 0.0])
    assert geometry.rectified_pair(K, right_K, T) == geometry.RectifiedPair(100, 0.5, 7)
    assert geometry.rectified_pair(right_K, K, torch.linalg.inv(T)) == geometry.RectifiedPair(100, 0.5, 7)
    # Mirrored and seen from the other camera, it is the same pair.
    mirrored, motion = geometry.flip_geometry(right_K, torch.linalg.inv(T), 120)
    assert geometry.rectified_pair(mirrored, geometry.flip_geometry(K, T, 120)[0], motion) == (100, 0.5, 7)


@pytest.mark.parametrize("change", ["above", "turned", "nowhere", "focal"])
def test_a_pair_that_is_not_rectified(change: str) -> None:
    K, T = torch.diag(torch.tensor([100.0, 100, 1])), torch.eye(4)
    T[0, 3] = -0.5
    other = K.clone()
    if change == "above":
        T[1, 3] = 0.02
    elif change == "turned":
        T = geometry.pose_matrix(torch.tensor([0.0, 0.01, 0]), T[:3, 3])
    elif change == "nowhere":
        T = torch.eye(4)
    else:
        other[1, 1] = 101
    with pytest.raises(ValueError, match="source_K: expected" if change == "focal" else "T: expected a shift along x"):
        geometry.rectified_pair(K, other, T)
