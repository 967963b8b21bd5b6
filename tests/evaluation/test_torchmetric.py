import math
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mdepth_fast.evaluation import DepthMetric, Evaluator, Protocol

PLAIN = Protocol("plain")
PROTOCOLS = {
    alignment + average: replace(PLAIN, alignment=alignment, average=average)
    for alignment in ("none", "median", "lsq_disparity")
    for average in ("images", "pixels")
}


def frames() -> tuple[Tensor, Tensor]:
    """Five images, each with noise and a number of measured pixels of its own, the last without any."""
    generator = torch.Generator().manual_seed(0)
    truth, noise, hit = torch.rand(3, 5, 1, 20, 30, generator=generator)
    truth = 2 + 40 * truth
    prediction = truth * (torch.arange(1, 6).view(5, 1, 1, 1) * 0.1 * noise).exp()
    return prediction, truth.masked_fill(hit > torch.tensor([0.9, 0.5, 0.3, 0.1, -1]).view(5, 1, 1, 1), 0)


def of_evaluator(protocol: Protocol) -> dict[str, float]:
    evaluator = Evaluator(protocol)
    for prediction, truth in zip(*frames()):
        evaluator.update(prediction, truth)
    return {key: value for key, value in evaluator.compute().items() if not key.startswith("scale")}


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_batches_give_the_numbers_of_the_evaluator(protocol: Protocol) -> None:
    prediction, truth = frames()
    metric = DepthMetric(protocol)
    metric.update(prediction[:3], truth[:3])
    metric.update(prediction[3:, 0], truth[3:, 0])
    found = metric.compute()
    assert all(value.dtype == torch.float64 and value.dim() == 0 for value in found.values())
    assert {key: value.item() for key, value in found.items()} == pytest.approx(of_evaluator(protocol), rel=1e-12)
    assert found["images"] == 4 and found["without_ground_truth"] == 1
    # What one batch gives, and a fresh start.
    first = metric(prediction[:1], truth[:1])
    assert first["images"] == 1 and metric.compute()["images"] == 5
    metric.reset()
    assert metric.half().metrics.dtype == torch.float64  # a network's precision is not that of its metrics
    metric.update(prediction[:1], truth[:1])
    assert metric.compute()["rmse"] == first["rmse"]


def test_inverse_depth_and_nothing_at_all() -> None:
    prediction, truth = frames()
    metric = DepthMetric("kitti_affine")
    metric.update(1 / prediction[:4] - 0.3, truth[:4], inverse=True)
    want = DepthMetric("kitti_affine")
    want.update(prediction[:4], truth[:4])
    assert metric.compute()["abs_rel"].item() == pytest.approx(want.compute()["abs_rel"].item(), rel=1e-4)
    metric.reset()
    metric.update(prediction[4:], truth[4:])
    assert math.isnan(metric.compute()["abs_rel"]) and metric.compute()["without_ground_truth"] == 1


def test_bad_input() -> None:
    prediction, truth = frames()
    metric = DepthMetric(PLAIN)
    with pytest.raises(ValueError, match=r"expected \(B, 1, h, w\) .*, got \(5, 1, 20, 30\) and \(3, 1, 20, 30\)"):
        metric.update(prediction, truth[:3])
    with pytest.raises(ValueError, match=r"expected \(B, 1, h, w\) .*, got \(20, 30\)"):
        metric.update(prediction[0, 0], truth[0, 0])
    with pytest.raises(ValueError, match="prediction of image 1 of the batch: expected finite depths"):
        metric.update(prediction.index_fill(0, torch.tensor(1), torch.nan), truth)
    with pytest.raises(ValueError, match=r"protocol: expected one whose images are independent, got .* one median"):
        DepthMetric(replace(PLAIN, alignment="median_set"))
    with pytest.raises(ValueError, match="protocol: expected one of"):
        DepthMetric("mine")


# What one evaluator a process gives together: every alignment, that by the median of the whole set among them.
EVALUATED = {**PROTOCOLS, "median": replace(PLAIN, alignment="median")}
EVALUATED["median_set"] = replace(PLAIN, alignment="median_set")


def _process(rank: int, folder: Path, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    prediction, truth = frames()
    found = {}
    for name, protocol in PROTOCOLS.items():
        metric = DepthMetric(protocol)
        # Unequal shares: three images and two.
        metric.update(prediction[rank::2], truth[rank::2])
        found[name] = {key: value.item() for key, value in metric.compute().items()}
        assert metric.images.sum() == 3 - rank  # its own again after computing
    gathered = {}
    for name, protocol in EVALUATED.items():
        evaluator = Evaluator(protocol)
        for index in range(rank, len(truth), 2):
            evaluator.update(prediction[index], truth[index])
        gathered[name] = evaluator.gather().compute()
    dist.destroy_process_group()
    queue.put((found, gathered))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork of a process with threads
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_process, args=(rank, tmp_path, queue), daemon=True) for rank in range(2)]
    try:
        for worker in workers:
            worker.start()
        results = [queue.get(timeout=60) for _ in workers]
    finally:
        for worker in workers:
            worker.kill()
    for found, gathered in results:
        for name, protocol in PROTOCOLS.items():
            assert found[name] == pytest.approx(of_evaluator(protocol), rel=1e-12)
        for name, protocol in EVALUATED.items():
            evaluator = Evaluator(protocol)
            for prediction, truth in zip(*frames()):
                evaluator.update(prediction, truth)
            assert evaluator.gather() is evaluator, "one process has all there is"
            assert gathered[name] == pytest.approx(evaluator.compute(), rel=1e-12)
