"""A whole training step, and a whole training run."""

import re
import subprocess
import sys
import time

import pytest
import torch
from plain_monodepth2 import PlainDepthNet, PlainPoseNet, copy_weights

from mdepth_fast import use_backend
from mdepth_fast.bench.cases import scene
from mdepth_fast.geometry import pose_matrix
from mdepth_fast.losses import MonodepthLoss
from mdepth_fast.models import create_model

BATCH, HEIGHT, WIDTH = 2, 192, 640


class Step:
    """A step of Monodepth2: ResNet-18 depth net, pose net over pairs, Adam."""

    def __init__(self, depth_net, pose_net, backend, fused, device):
        self.depth_net, self.pose_net, self.backend = depth_net.to(device), pose_net.to(device), backend
        self.optimiser = torch.optim.Adam([*depth_net.parameters(), *pose_net.parameters()], lr=1e-4, fused=fused)
        self.loss = MonodepthLoss()
        inputs = scene(BATCH, HEIGHT, WIDTH)
        self.inputs = [inputs[name].to(device) for name in ("target", "sources", "K")]

    def __call__(self):
        target, sources, K = self.inputs
        disparities = self.depth_net(target)
        before = pose_matrix(*self.pose_net(sources[:, 0], target), invert=True)
        after = pose_matrix(*self.pose_net(target, sources[:, 1]))
        with use_backend(self.backend):
            loss = self.loss(disparities, target, sources, K, torch.stack([before, after], 1))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()


def test_training_step(in_turn, device):
    """This package against the same networks and loss as they are usually written, both eager."""
    torch.manual_seed(0)
    depth_net, pose_net = create_model("monodepth2_resnet18"), create_model("posenet_resnet18")
    plain_depth, plain_pose = PlainDepthNet(), PlainPoseNet()
    copy_weights(plain_depth, depth_net)
    copy_weights(plain_pose, pose_net)
    # The trainer's optimiser is PyTorch's fused Adam; published code has the default.
    ours = Step(depth_net, pose_net, None, True, device)
    plain = Step(plain_depth, plain_pose, "reference", None, device)
    first, expected = ours(), plain()  # the same weights, so the same loss
    assert abs(first - expected) < 1e-4 * expected
    title = "a training step of Monodepth2, ResNet-18 depth and pose"
    in_turn("training_step", f"{BATCH}x{HEIGHT}x{WIDTH}", {"eager": plain, "mdepth_fast": ours}, title=title)


def test_motorcycle(benchmark, full, save, tmp_path):
    """The README's first command, with its error against the ground truth of the pair it was trained on."""
    if not full:
        pytest.skip("takes minutes: --full runs it")
    words = ["train", "motorcycle"]

    def run():
        started = time.perf_counter()
        command = [sys.executable, "-m", "mdepth_fast", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - started, done.stdout

    wall, output = benchmark.pedantic(run, rounds=1)
    seconds = float(re.search(r"^finished in (\d+) s$", output, re.MULTILINE)[1])
    metrics = read_metrics(output)
    print(f"\n{' '.join(words)}: {seconds:.0f} s of training, {wall:.0f} s in all, {metrics}")
    command = " ".join(["mdepth-fast", *words])
    save("train_motorcycle", "1 pair", command=command, seconds=seconds, wall_seconds=wall, metrics=metrics)


def read_metrics(output):
    """What the table says after training, by column."""
    titles, numbers = re.search(r"^( +abs_rel .*)\n(?:before .*\n)?after +(.*)$", output, re.MULTILINE).groups()
    return dict(zip(titles.split(), map(float, numbers.split()), strict=True))
