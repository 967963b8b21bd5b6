"""The vision transformer by itself; with its weights from elsewhere it is tested in test_dpt.py."""

import pytest
import torch

from mdepth_fast.models.vit import PatchEmbed, VisionTransformer, resized_positions


@pytest.fixture
def vit():
    return VisionTransformer(24, 3, 2, PatchEmbed(24), grid=4).eval()


@torch.no_grad()
def test_taps_are_outputs_of_blocks(vit):
    outputs = []
    for block in vit.blocks:
        block.register_forward_hook(lambda _, inputs, output: outputs.append(output.clone()))
    maps, tokens = vit(torch.rand(2, 3, 48, 80), (0, 2))
    assert maps == [] and [t.shape for t in tokens] == [(2, 1 + 3 * 5, 24)] * 2
    assert torch.equal(tokens[0], outputs[0]) and torch.equal(tokens[1], outputs[2])
    outputs.clear()
    vit(torch.rand(1, 3, 48, 80), (1,))
    assert len(outputs) == 2  # the last block is not needed


@torch.no_grad()
def test_without_positions_tokens_move_with_their_patches(vit):
    vit.pos_embed.zero_()
    x = torch.rand(1, 3, 32, 64)
    (tokens,), (moved,) = (vit(image, (2,))[1] for image in (x, x.roll((16, 32), (2, 3))))
    torch.testing.assert_close(moved[:, 0], tokens[:, 0])
    grid, moved = (t[:, 1:].unflatten(1, (2, 4)) for t in (tokens, moved))
    torch.testing.assert_close(moved, grid.roll((1, 2), (1, 2)))


def test_positions_are_resized_per_axis():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    positions = torch.stack([rows, columns], -1).flatten(0, 1)
    positions = torch.cat([torch.full((1, 2), 9.0), positions])[None]
    assert resized_positions(positions, 4, (4, 4)) is positions
    resized = resized_positions(positions, 4, (2, 8))
    assert (resized[0, 0] == 9).all()
    grid = resized[0, 1:].unflatten(0, (2, 8))
    torch.testing.assert_close(grid[:, 0, 0], torch.tensor([0.5, 2.5]))
    torch.testing.assert_close(grid[0, :, 1], ((torch.arange(8) + 0.5) / 2 - 0.5).clamp(0, 3))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"heads: expected a divisor of dim = 24, got 5"):
        VisionTransformer(24, 1, 5, PatchEmbed(24))
