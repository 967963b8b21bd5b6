"""End-point error and Fl in closed form, averages, merging, errors."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mdepth_fast.evaluation import FLOW_PROTOCOLS, FlowEvaluator, FlowProtocol, get_flow_protocol


def test_closed_forms():
    """Errors of 5, 3 and 10 pixels; the last is under 5 percent of its length, and the occluded one is the first."""
    flow = np.zeros((2, 1, 4))
    flow[0] = [[10, 0, 300, np.nan]]
    prediction = flow.copy()
    prediction[:, 0, :3] += [[3, 3, 10], [4, 0, 0]]
    prediction[:, 0, 3] = 7
    valid = np.array([[True, True, True, False]])
    visible = np.array([[False, True, True, True]])
    evaluator = FlowEvaluator("flow")
    found = evaluator.update(prediction, flow, valid, visible)
    assert found == {
        "epe": pytest.approx(6),
        "epe_noc": pytest.approx(6.5),
        "fl": pytest.approx(100 / 3),  # 3 px is no outlier, nor is 10 px of 300
        "fl_noc": 0,
        "motion": pytest.approx(310 / 3),
    }
    assert evaluator.compute() == found | {"images": 1, "without_ground_truth": 0}


def test_what_is_averaged():
    """One pair of one pixel, off by 4, and one of three pixels, off by 0: over images 2, over pixels 1."""
    means = {}
    for average in ("images", "pixels"):
        evaluator = FlowEvaluator(FlowProtocol("mine", average=average))
        evaluator.update(torch.full((1, 2, 1, 1), 8**0.5), torch.zeros(2, 1, 1))
        evaluator.update(torch.ones(2, 1, 3), torch.ones(1, 2, 1, 3))
        summary = evaluator.compute()
        means[average] = summary["epe"]
        assert summary["fl"] == 25
        assert math.isnan(summary["epe_noc"])
    assert means == {"images": pytest.approx(2), "pixels": pytest.approx(1)}


@pytest.mark.parametrize("name", list(FLOW_PROTOCOLS))
def test_merged_evaluators_are_one(name):
    rng = np.random.default_rng(0)
    whole, parts = FlowEvaluator(name), [FlowEvaluator(name), FlowEvaluator(name)]
    for index in range(5):
        flow = rng.normal(0, 9, (2, 3, 4 + index))
        prediction = flow + rng.normal(0, 3, flow.shape)
        valid = rng.random(flow.shape[1:]) < (0 if index == 3 else 0.7)
        visible = rng.random(flow.shape[1:]) < 0.5
        for evaluator in (whole, parts[index % 2]):
            evaluator.update(prediction, flow, valid, visible)
    parts[0].merge(parts[1])
    assert parts[0].compute() == pytest.approx(whole.compute())
    assert whole.compute()["without_ground_truth"] == 1
    lines = whole.table().splitlines()
    assert lines[0].startswith(f"protocol {name}: end-point error")
    assert len(lines[2].split()) == len(get_flow_protocol(name).columns)
    assert lines[3] == "4 pairs, 1 more had no ground truth and are left out"
    with pytest.raises(ValueError, match="other: expected an evaluator of protocol"):
        whole.merge(FlowEvaluator(replace(whole.protocol, outlier=1.0)))


def test_bad_input_is_named():
    flow = torch.zeros(2, 3, 4)
    evaluator = FlowEvaluator("flow")
    with pytest.raises(ValueError, match=r"left: expected a prediction of the size .* \(3, 4\), got \(3, 5\)"):
        evaluator.update(torch.zeros(2, 3, 5), flow, name="left")
    with pytest.raises(ValueError, match="pair 0: expected finite flow"):
        evaluator.update(flow * torch.nan, flow)
    with pytest.raises(ValueError, match=r"pair 0: expected \(2,h,w\) or \(1,2,h,w\), got \(3, 4\)"):
        evaluator.update(flow, flow[0])
    with pytest.raises(ValueError, match="pair 0: expected valid and visible of the size"):
        evaluator.update(flow, flow, torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"protocol: expected one of .*'epe'"):
        FlowEvaluator("epe")
    for field, value in (("average", "rows"), ("outlier", -1.0), ("columns", ("abs_rel",))):
        with pytest.raises(ValueError, match=f"^{field}.*: expected"):
            FlowProtocol("mine", **{field: value})
