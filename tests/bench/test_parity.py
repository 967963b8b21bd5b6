"""The comparison with original repositories, on small ones that the tests write in the place of BTS's."""

import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benches"))

import parity  # noqa: E402
import parity_peers  # noqa: E402

METRICS = """
import cv2  # which the command replaces
import numpy as np

cv2.setNumThreads(0)

def compute_errors(gt, pred):
    ratio, log = np.maximum(gt / pred, pred / gt), np.log(pred) - np.log(gt)
    deltas = [(ratio < 1.25**n).mean() for n in (1, 2, 3)]
    errors = [np.mean(abs(gt - pred) / gt), np.mean((gt - pred) ** 2 / gt), np.sqrt(np.mean((gt - pred) ** 2))]
    return [100 * log.std(), np.mean(abs(log)) / np.log(10), *errors, np.sqrt(np.mean(log**2)), *deltas]
"""
LOSS = """
import torch

class silog_loss(torch.nn.Module):
    def __init__(self, focus):
        super().__init__()
        self.focus = focus

    def forward(self, output, depth, mask):
        e = torch.log(output[mask] / depth[mask])
        return SCALE * torch.sqrt((e**2).mean() - self.focus * e.mean() ** 2)
"""


def clone(folder: Path, loss: str, metrics: str = METRICS) -> Path:
    for name, text in (("pytorch/bts.py", loss), ("utils/eval_with_pngs.py", metrics)):
        path = folder / "bts" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return folder


def verdicts(page: Path) -> dict[str, str]:
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| bts |")]
    return {row[1]: row[-1].removesuffix(" |") for row in rows}


@pytest.mark.parametrize(
    ("loss", "metrics", "status", "expected"),
    [
        (LOSS.replace("SCALE", "10"), METRICS, 0, {"silog loss": "equal", "metrics": "equal"}),
        (LOSS.replace("SCALE", "10.001"), METRICS, 1, {"silog loss": "differs", "metrics": "equal"}),
        ("import surely_not_installed", METRICS, 1, {"": "not compared: bts cannot be imported: ModuleNotFoundError"}),
        (LOSS.replace("SCALE", "10"), "raise SystemExit(2)", 0, {"silog loss": "equal", "the rest": "not compared"}),
    ],
    ids=["equal", "differs", "not importable", "partly importable"],
)
def test_a_peer(tmp_path, loss, metrics, status, expected):
    page = tmp_path / "page.md"
    options = ["--output", str(page), "--revision", "bts=commit 0123abc"]
    assert parity.main([str(clone(tmp_path / "peers", loss, metrics)), "bts", *options]) == status
    found = verdicts(page)
    assert found.keys() == expected.keys()
    assert all(found[what].startswith(verdict) for what, verdict in expected.items())
    compared = any(not verdict.startswith("not compared") for verdict in found.values())
    assert ("**bts**, commit 0123abc, as stated: " in page.read_text()) == compared


def test_peers_that_are_not_there(tmp_path):
    page = tmp_path / "page.md"
    assert parity.main([str(tmp_path), "--output", str(page)]) == 1
    lines = page.read_text().splitlines()
    for name, peer in parity_peers.PEERS.items():
        reason = "not in the folder" if peer.adapter else peer.terms
        assert f"| {name} |  | – | – | not compared: {reason} |" in lines


def test_wrong_usage(tmp_path, capsys):
    for arguments in ([str(tmp_path / "none")], [str(tmp_path), "nobody"], [str(tmp_path), "--revision", "nobody=1"]):
        with pytest.raises(SystemExit):
            parity.main(arguments)
        assert "expected" in capsys.readouterr().err


def test_the_relative_difference():
    a, b = torch.tensor([1.0, -4.0]), torch.tensor([1.0, -4.4])
    assert parity.relative_difference([a, b], [a, b]) == 0
    assert parity.relative_difference([a], [b]) == pytest.approx(0.4 / 4.4)
    assert parity.relative_difference([a, a], [a, 0 * a]) == math.inf
    assert math.isnan(parity.relative_difference([a * math.nan], [a]))
    for ours, theirs in (([a], [a, b]), ([a], [a[:1]]), ([0 * a], [0 * a]), ([], [])):
        with pytest.raises(ValueError):
            parity.relative_difference(ours, theirs)


def test_a_difference_that_is_not_finite_is_never_meant():
    def values(*numbers: float):
        return lambda: parity.Tensors([torch.tensor(numbers)])

    assert parity.compare(parity.Comparison("", values(1.0), values(1.1), "because"))["verdict"] == parity.KNOWN
    assert parity.compare(parity.Comparison("", values(1.0), values(math.nan), "because"))["verdict"] == parity.DIFFERS
    assert parity.compare(parity.Comparison("", values(1.0), values(1.1)))["verdict"] == parity.DIFFERS


def test_the_committed_page_names_every_peer():
    lines = parity.FIDELITY.read_text().splitlines()
    for name in parity_peers.PEERS:
        assert any(line.startswith(f"| {name} |") for line in lines), f"{name}: run `make parity`"
