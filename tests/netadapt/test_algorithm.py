"""The loop of NetAdapt: schedule, choice, budget, what it costs, and going on after an interruption."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mdepth_fast.netadapt import ChannelGraph, LatencyTable, measure_latency, netadapt, resource, resources

EXAMPLE = torch.rand(1, 3, 16, 16)


def make_net(*widths):
    torch.manual_seed(1)
    layers, inputs = [], 3
    for width in widths:
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Conv2d(inputs, 1, 1)).eval()


class Log:
    """A score that prefers networks whose first layer is wide, and a record of the calls."""

    def __init__(self, stop_after=None):
        self.tuned, self.scored, self.stop_after = 0, 0, stop_after

    def fine_tune(self, model):
        if self.stop_after is not None and self.tuned >= self.stop_after:
            raise KeyboardInterrupt
        self.tuned += 1

    def score(self, model):
        self.scored += 1
        return float(model[0].out_channels)


@pytest.mark.parametrize("cost", ["macs", "weights"])
def test_every_iteration_meets_its_target_until_the_budget_is_met(cost):
    net, log = make_net(32, 48, 40), Log()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    result = netadapt(
        net, EXAMPLE, budget=0.4, cost=cost, fine_tune=log.fine_tune, score=log.score, reduction=0.1, decay=0.9
    )
    graph = ChannelGraph(result.model, EXAMPLE)
    assert resource(cost)(graph, graph.sizes) == result.final <= 0.4 * result.initial
    now = result.initial
    for iteration, step in enumerate(result.steps):
        target = max(0.4 * result.initial, now - result.initial * 0.1 * 0.9**iteration)
        assert step.cost <= target < now and step.after % 8 == 0 and step.after < step.before
        now = step.cost
    assert now == result.final
    assert result.model[0].out_channels == 32  # the score says that this layer matters
    assert {module.out_channels % 8 for module in result.model if isinstance(module, nn.Conv2d)} == {0, 1}
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert result.model(EXAMPLE).shape == (1, 1, 16, 16)


def test_the_paper_takes_the_best_score_and_the_program_the_best_ratio():
    """Eight channels of the first layer save 24 % of the weights, of the second 12 %, for a loss a little smaller."""

    def score(model):
        return -(1.1 if model[0].out_channels < 32 else 0.0) - (1.0 if model[2].out_channels < 64 else 0.0)

    for criterion, layer in (("score", "2"), ("ratio", "0")):
        net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, 1, 1))
        options = {"budget": 0.9, "cost": "weights", "reduction": 0.1, "criterion": criterion}
        result = netadapt(net, EXAMPLE, fine_tune=lambda m: None, score=score, **options)
        assert result.steps[0].layer == layer


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path):
    options = dict(budget=0.5, cost="macs", reduction=0.1)
    log = Log()
    whole = netadapt(make_net(32, 48), EXAMPLE, fine_tune=log.fine_tune, score=log.score, **options)
    assert len(whole.steps) > 3
    log = Log(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        netadapt(
            make_net(32, 48), EXAMPLE, fine_tune=log.fine_tune, score=log.score, folder=tmp_path / "run", **options
        )
    done = len(json.loads((tmp_path / "run" / "steps.json").read_text())["steps"])
    assert 0 < done < len(whole.steps)
    log = Log()
    with pytest.raises(ValueError, match=r"^folder: .* holds a run already"):
        netadapt(
            make_net(32, 48), EXAMPLE, fine_tune=log.fine_tune, score=log.score, folder=tmp_path / "run", **options
        )
    result = netadapt(
        make_net(32, 48),
        EXAMPLE,
        fine_tune=log.fine_tune,
        score=log.score,
        folder=tmp_path / "run",
        resume=True,
        **options,
    )
    assert result.steps == whole.steps
    for a, b in zip(result.model.state_dict().values(), whole.model.state_dict().values()):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"steps.json: the run had other settings: budget 0.5 -> 0.3"):
        netadapt(
            make_net(32, 48), EXAMPLE, fine_tune=log.fine_tune, score=log.score, folder=tmp_path / "run", resume=True,
            **{**options, "budget": 0.3},
        )  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """A second for every operation in place of the machine's time, which depends on what else it does."""

    def operations(function, device, runs):
        with FlopCounterMode(display=False) as counter:
            function()
        return float(counter.get_total_flops())

    monkeypatch.setattr(resources, "_fastest", operations)


def test_latency_table(tmp_path, clock):
    net = make_net(64, 96)
    example = torch.rand(1, 3, 64, 64)
    table = LatencyTable(tmp_path / "table.json", runs=5)
    graph = ChannelGraph(net, example)
    seconds = table.calibrate(graph, net, example)
    assert table.latency(graph, graph.sizes) == pytest.approx(seconds)
    half = {number: size if graph.groups[number].fixed else 16 for number, size in graph.sizes.items()}
    smaller = graph.shrink(net, {n: graph.keep_largest(net, n, 16) for n in graph.prunable})
    expected, (measured,) = table.latency(graph, half), measure_latency(smaller, example=example)
    assert expected == pytest.approx(measured) and expected < 0.3 * seconds
    table.save()
    count = len(table.entries)
    again = LatencyTable(tmp_path / "table.json", runs=5)
    assert again.latency(graph, half) == expected and len(again.entries) == count

    content = json.loads((tmp_path / "table.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**content, "machine": "another"}))
    with pytest.raises(ValueError, match=r"other.json: expected a table of .*, got one of another"):
        LatencyTable(tmp_path / "other.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken.json: not a latency table"):
        LatencyTable(tmp_path / "broken.json")


def test_latency_of_grouped_convolutions_and_of_flattening(clock):
    """A grouped convolution keeps its groups; what names sizes of its own, a view, is not run with others."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped, self.deep = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, groups=4)
            self.last, self.head = nn.Conv2d(32, 24, 3, stride=4), nn.Linear(24 * 9, 1)

        def forward(self, x):
            x = self.last(self.deep(self.grouped(x)))
            return self.head(x.view(1, x.shape[1] * 9))

    net = Net().eval()
    graph, table = ChannelGraph(net, EXAMPLE), LatencyTable()
    number = graph.number("last")
    smaller = graph.shrink(net, {number: torch.arange(8)})
    priced = [table.latency(graph, graph.sizes), table.latency(graph, {**graph.sizes, number: 8})]
    assert priced == measure_latency(net, smaller, example=EXAMPLE)


def test_time_is_measured():
    net, example = make_net(8), torch.rand(1, 3, 8, 8)
    table = LatencyTable(runs=3)
    graph = ChannelGraph(net, example)
    assert table.calibrate(graph, net, example) > 0 and table.line[0] > 0 and table.line[1] >= 0
    assert len(table.entries) == 6 and all(seconds > 0 for seconds in table.entries.values())


def test_latency_as_the_resource(tmp_path, clock):
    net, example, log = make_net(64, 96), torch.rand(1, 3, 64, 64), Log()
    table = LatencyTable(tmp_path / "table.json", runs=5)
    result = netadapt(
        net, example, budget=0.6, cost="latency", table=table, fine_tune=log.fine_tune, score=log.score, reduction=0.2
    )
    assert result.final <= 0.6 * result.initial and (tmp_path / "table.json").is_file()
    with pytest.raises(ValueError, match=r"^table: expected a LatencyTable"):
        netadapt(net, example, budget=0.6, cost="latency", fine_tune=log.fine_tune, score=log.score)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1.5}, "^budget: expected a share between 0 and 1, got 1.5"),
        ({"reduction": 0.0}, "^reduction, decay: expected shares"),
        ({"criterion": "best"}, '^criterion: expected "score" or "ratio", got \'best\''),
        ({"cost": "watts"}, '^resource: expected "weights", "macs" or "latency", got \'watts\''),
        ({"multiple": 0}, "^multiple: expected at least 1"),
        ({"resume": True}, "^folder: expected one, as resume=True"),
        ({"budget": 0.01}, "^budget: no layer alone can bring the cost from"),
    ],
)
def test_errors(options, message):
    log = Log()
    with pytest.raises(ValueError, match=message):
        netadapt(
            make_net(16, 16), EXAMPLE,
            **{"budget": 0.5, "fine_tune": log.fine_tune, "score": log.score, "reduction": 0.2, **options},
        )  # fmt: skip


def test_a_network_that_cannot_shrink():
    with pytest.raises(ValueError, match=r"^model: no channels of Conv2d may shrink"):
        netadapt(nn.Conv2d(3, 8, 1), EXAMPLE, budget=0.5, fine_tune=lambda m: None, score=lambda m: 0.0)


def test_the_ratio_is_of_the_absolute_cost():
    """In the authors' program 1e-5 is added to the cost; to its share it would favour small savings by 4e-5 here."""

    def run(first, second):
        net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, 1, 1))

        def score(model):
            return -(first if model[0].out_channels < 32 else 0.0) - (second if model[2].out_channels < 64 else 0.0)

        options = {"budget": 0.9, "cost": "weights", "reduction": 0.1, "criterion": "ratio"}
        result = netadapt(net, EXAMPLE, fine_tune=lambda m: None, score=score, **options)
        return result.steps[0].layer, result.initial - result.steps[0].cost

    (_, large), (_, small) = run(0.0, 9.0), run(9.0, 0.0)
    assert large > 1.5 * small
    assert run(large, small * (1 + 2e-5))[0] == "0" and run(large * (1 + 2e-5), small)[0] == "2"
