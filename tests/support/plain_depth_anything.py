"""transformers' Depth Anything, and random weights to compare it with: the oracle of the tests and of a bench."""

import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config


def theirs(g, max_depth=None):
    """transformers' net of the same sizes."""
    backbone = Dinov2Config(
        image_size=518,
        hidden_size=g.dim,
        num_hidden_layers=g.depth,
        num_attention_heads=g.heads,
        out_indices=[tap + 1 for tap in g.taps],
        reshape_hidden_states=False,
    )
    head = {"depth_estimation_type": "metric", "max_depth": int(max_depth)} if max_depth else {}
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=g.dim,
        neck_hidden_sizes=list(g.widths),
        fusion_hidden_size=g.features,
        **head,
    )
    return DepthAnythingForDepthEstimation(config).eval()


@torch.no_grad()
def randomise(net):
    """Weights under which every layer matters to the output, which varies and is nowhere zero."""
    for name, value in net.named_parameters():
        if value.dim() > 1:
            value.normal_(0, value[0].numel() ** -0.5)
        elif ("norm" in name and name.endswith("weight")) or name.endswith(("gamma", "lambda1")):
            value.uniform_(0.5, 1.5)
        else:
            value.normal_(0, 0.1)
    return net
