"""One whole training step of Monodepth2 (ResNet-18 depth, pose pairs, 192x640, B = 2, Adam): this package against the
same networks and loss as they are usually written, both eager, in turn within one process."""

import os
import statistics
import time

import torch
from plain_monodepth2 import PlainDepthNet, PlainPoseNet, copy_weights

from mdepth_fast import use_backend
from mdepth_fast.benchmark import scene
from mdepth_fast.geometry import pose_matrix
from mdepth_fast.losses import MonodepthLoss
from mdepth_fast.models import create_model

BATCH, HEIGHT, WIDTH = 2, 192, 640
ROUNDS = int(os.environ.get("MDEPTH_BENCH_ROUNDS", "5"))


class Step:
    def __init__(self, depth_net, pose_net, backend, fused):
        self.depth_net, self.pose_net, self.backend = depth_net, pose_net, backend
        self.optimiser = torch.optim.Adam([*depth_net.parameters(), *pose_net.parameters()], lr=1e-4, fused=fused)
        self.loss = MonodepthLoss()
        self.inputs = scene(BATCH, HEIGHT, WIDTH)

    def __call__(self):
        target, sources, K = (self.inputs[name] for name in ("target", "sources", "K"))
        disparities = self.depth_net(target)
        before = pose_matrix(*self.pose_net(sources[:, 0], target), invert=True)
        after = pose_matrix(*self.pose_net(target, sources[:, 1]))
        with use_backend(self.backend):
            loss = self.loss(disparities, target, sources, K, torch.stack([before, after], 1))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()


def test_training_step(benchmark):
    torch.manual_seed(0)
    depth_net, pose_net = create_model("monodepth2_resnet18"), create_model("posenet_resnet18")
    plain_depth, plain_pose = PlainDepthNet(), PlainPoseNet()
    copy_weights(plain_depth, depth_net)
    copy_weights(plain_pose, pose_net)
    # The trainer's optimiser is PyTorch's fused Adam; published code has the default.
    ours, plain = Step(depth_net, pose_net, None, True), Step(plain_depth, plain_pose, "reference", None)
    first, expected = ours(), plain()  # the same weights, so the same loss; also the warm-up
    assert abs(first - expected) < 1e-4 * expected
    times = {plain: [], ours: []}

    def both():
        for step in (plain, ours):
            start = time.perf_counter()
            step()
            times[step].append(time.perf_counter() - start)

    benchmark.pedantic(both, rounds=ROUNDS)
    ratio = statistics.median(times[plain]) / statistics.median(times[ours])
    benchmark.extra_info.update(
        plain=statistics.median(times[plain]), fused=statistics.median(times[ours]), ratio=ratio
    )
    print(f"\ntraining step: {ratio:.2f}x, " + ", ".join(f"{statistics.median(t):.2f} s" for t in times.values()))
