"""The documentation: it builds without a network, its commands parse, its Python runs, and what it says of models and
presets is what the code has.

A Python block that cannot run here, as it needs somebody's data or weights, has a comment `<!-- fragment: reason -->`
above it, which a reader does not see.
"""

import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from contextlib import redirect_stderr
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import griffe
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_run import TinyDepth

import mdepth_fast
from mdepth_fast import losses
from mdepth_fast.cli import _COMMANDS, main
from mdepth_fast.cli.data import _VERBS
from mdepth_fast.evaluation import FLOW_PROTOCOLS, PROTOCOLS
from mdepth_fast.models import create_model, list_models
from mdepth_fast.systems import list_presets, load_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted(DOCS.rglob("*.md"))]
SYSTEMS = [path for path in sorted((DOCS / "systems").glob("*.md")) if path.stem != "index"]
API = sorted((DOCS / "api").glob("*.md"))
LEARN = [path for path in sorted((DOCS / "learn").glob("*.md")) if path.stem != "index"]

pytestmark = pytest.mark.usefixtures("packaged_only")
by_page = {"ids": lambda path: path.relative_to(ROOT).as_posix()}


def blocks(text, *languages):
    """(what stands in the line above, content) of the fenced blocks of these languages."""
    found = re.findall(r"^([^\n]*)\n```([\w-]*)\n(.*?)^```$", "\n" + text, re.M | re.S)
    return [(above, content) for above, language, content in found if language in languages]


# The site

NO_NETWORK = """
import socket, sys
def refuse(*_):
    raise OSError("the build of the documentation needs no network")
socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli(["build", "--strict", "--quiet", "--site-dir", sys.argv[1]])
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built strictly: a page outside the navigation, a dead link or anchor, or a faulty docstring is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-c", NO_NETWORK, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        for tag in re.findall(r"<(?:script|link|img|iframe|source|video)\b[^>]*>", page.read_text()):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), f"{page.name}: {tag}"
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"url\(['\"]?(?:https?:)?//", styles)


@pytest.mark.parametrize("path", API, **by_page)
def test_the_reference_has_everything_public(path, site):
    module = import_module(f"mdepth_fast.{path.stem}")
    page = (site / "api" / f"{path.stem}.html").read_text()
    described = {anchor.rpartition(".")[2] for anchor in re.findall(r'id="(mdepth_fast\.[\w.]+)"', page)}
    assert not {name for name in module.__all__ if callable(getattr(module, name))} - described


def test_docstrings_name_arguments_that_there_are():
    """One entry may describe several arguments, so griffe's own check is off."""
    package = griffe.load("mdepth_fast", search_paths=[str(ROOT)], allow_inspection=False)
    checked = 0
    for path in API:
        for name in package[path.stem].exports or ():
            for function in functions(package[path.stem][name]):
                for section in function.docstring.parse("google", warnings=False):
                    if section.kind is griffe.DocstringSectionKind.parameters:
                        described = {one for entry in section.value for one in re.split(r", *", entry.name)}
                        fields = function.members if function.is_class and not list(function.parameters) else ()
                        arguments = {*(parameter.name.lstrip("*") for parameter in function.parameters), *fields}
                        assert described <= arguments, f"{function.path}: {described - arguments}"
                        checked += 1
    assert checked > 50


def functions(found):
    """The functions and classes with a docstring, of a name that a package exports."""
    if found.is_alias:
        found = found.final_target
    if found.is_module:  # an op, whose function has the name of its module
        found = found[found.name]
    members = [found, *(found.members.values() if found.is_class else ())]
    return [one for one in members if not one.is_alias and (one.is_class or one.is_function) and one.docstring]


# Links as the repository shows them; those of the site are mkdocs's to check


@pytest.mark.parametrize("path", PAGES, **by_page)
def test_links_lead_to_files(path):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if not re.match(r"https?://|#", target):
            assert (path.parent / target.partition("#")[0]).is_file(), target


# Commands


def commands(text):
    """The command lines of a page: of its blocks, and inline ones. One that only names a command asks for its help."""
    lines = []
    for _, content in blocks(text, "", "bash", "sh"):
        if content.isascii():  # others are drawings
            for line in content.replace("\\\n", " ").splitlines():
                lines += [part.strip() for part in line.partition(" #")[0].split("&&")]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for line in re.findall(r"`((?:mdepth-fast|make|pytest) [^`]+)`", prose):
        named = re.fullmatch(r"mdepth-fast (data )?[\w-]+", line)
        lines.append(f"{line} --help" if named else " ".join(line.split()))
    return [line for line in lines if line]


def fault(line):
    """What is wrong with a command line, or None."""
    program, *words = shlex.split(line)
    if program == "mdepth-fast":
        return fault_of_words(words)
    if program == "pip":
        extras = re.findall(r"[\w-]+", (re.search(r"\[(.*)\]", line) or [""])[0])
        known = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
        return None if words[0] == "install" and set(extras) <= set(known) else "no such extra"
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        return None if all(word in targets or "=" in word for word in words) else "no such target"
    if program in ("python", "pytest", "tensorboard", "mkdocs"):
        paths = [word for word in words if word.endswith(".py") or word in ("benches", "tests")]
        return None if all("<" in word or (ROOT / word).exists() for word in paths) else "no such file"
    return "no command that is known here"


def fault_of_words(words):
    """`mdepth_fast.cli.main` up to `run`, and the settings against those of the preset."""
    asks_for_help = words[-1] == "--help"
    words = words[: len(words) - asks_for_help]
    if not words or words[0] == "VERB":
        return None
    if words[0] not in _COMMANDS:
        return "no such command"
    if asks_for_help and words[0] == "data":
        return None if set(words[1:]) <= set(_VERBS) else "no such verb"
    if asks_for_help and words[1:] in ([], ["PRESET"], ["--loader", "PRESET"]):
        return None
    command = import_module(f"mdepth_fast.cli.{words[0]}")
    takes_settings = getattr(command, "TAKES_OVERRIDES", False)
    parser = ArgumentParser(allow_abbrev=False, add_help=False)
    command.add_arguments(parser)
    try:
        with redirect_stderr(StringIO()) as said:
            parsed, settings = parser.parse_known_args(getattr(command, "reordered", list)(words[1:]))
    except SystemExit:
        return said.getvalue()
    preset = getattr(parsed, "preset", None) or getattr(parsed, "data", None)
    if getattr(parsed, "loader", None):
        takes_settings, (preset, *settings) = True, parsed.loader
    if settings and not takes_settings:
        return f"unrecognized arguments: {settings}"
    if words[0] == "netadapt" and preset is None:
        preset = next(name for name, network in systems_of_presets().items() if network == parsed.model)
    if words[0] == "eval" and preset is None and (run := re.match(r"runs/(\w+)/", parsed.weights)):
        preset = run[1]
    if preset == "mine.yaml":  # of the page on the command line; another test reads its content
        preset = "kitti_mono"
    if preset in (None, "PRESET"):
        return f"settings of which preset? {settings}" if settings else None
    try:
        load_config(preset, settings)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("path", PAGES, **by_page)
def test_commands_parse(path):
    faults = {line: fault(line) for line in commands(path.read_text())}
    assert not {line: text for line, text in faults.items() if text}


@pytest.mark.parametrize(
    "line",
    [
        "mdepth-fast tain motorcycle",
        "mdepth-fast train motorcycel",
        "mdepth-fast train motorcycle --optimizer.lrate 1",
        "mdepth-fast train motorcycle --optimizer.lr one",
        "mdepth-fast predict runs/a b --nothing x",
        "mdepth-fast data check",
        "mdepth-fast bench --loader kitti_mono --data.nothing 1",
        "make nothing",
        'pip install ".[train,nothing]"',
        "python benches/nothing.py",
        "cp a b",
    ],
)
def test_a_wrong_command_is_found(line):
    assert fault(line)


def test_commands_are_found_in_blocks_and_in_prose():
    assert commands("```\na \\\n  b && c # d\n```\n`mdepth-fast info`, `x`") == [
        "a    b",
        "c",
        "mdepth-fast info --help",
    ]


def test_every_command_is_described(site):
    page = (site / "command_line.html").read_text()
    assert set(_COMMANDS) <= set(re.findall(r'<h2 id="([\w-]+)"', page))


def test_the_file_of_settings_loads(tmp_path):
    ((_, text),) = blocks((DOCS / "command_line.md").read_text(), "yaml")
    (tmp_path / "mine.yaml").write_text(text)
    config = load_config(str(tmp_path / "mine.yaml"))
    assert (config.run, config.data.batch_size, config.model.name) == ("mine", 8, "monodepth2_resnet18")


# Python


def frames_of_a_loader():
    K = torch.tensor([[[60.0, 0, 47.5], [0, 60.0, 31.5], [0, 0, 1]]])
    T = torch.eye(4).repeat(1, 2, 1, 1)
    T[:, :, 0, 3] = torch.tensor([-0.1, 0.1])
    return [(torch.rand(1, 3, 64, 96), torch.rand(1, 2, 3, 64, 96), K, T)]


@pytest.fixture
def names():
    """What a reader of the README has: images, a network, its optimiser and a loader."""
    network = TinyDepth()
    optimiser = torch.optim.Adam(network.parameters())
    return {
        "images": torch.rand(2, 3, 70, 90),
        "network": network,
        "optimiser": optimiser,
        "loader": frames_of_a_loader(),
    }


def run_python(path, names):
    for above, content in blocks(path.read_text(), "python"):
        if not above.startswith("<!-- fragment: "):
            exec(compile(content, str(path), "exec"), names)
    return names


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """The folder in which `runs/motorcycle/001` lies, as after the first command of the README, cut short."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        short = ("--trainer.max_steps=1", "--data.repeat=1", "--trainer.accelerator=cpu", "--data.height=64")
        assert main(["train", "motorcycle", *short, "--data.width=96"]) == 0
    return folder


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path.read_text(), "python")], **by_page)
def test_python_runs(path, names, one_run, monkeypatch):
    monkeypatch.chdir(one_run)
    run_python(path, names)
    if path in LEARN:
        shown = re.findall(r"^!\[[^]]*\]\(([^)]+)\)", path.read_text(), re.M)
        assert shown
        for name in shown:
            check_figure(path.with_name(name), one_run / name)


def check_figure(committed, made):
    """The picture beside the page is what its code draws, but for the hinting of another matplotlib's text."""
    assert made.is_file() and committed.stat().st_size < 60_000, "run `python docs/learn/run.py`"
    pictures = [Image.open(path).convert("RGB") for path in (committed, made)]
    assert pictures[0].size == pictures[1].size, f"{made.name}: run `python docs/learn/run.py`"
    if not made.stem.endswith("_time"):  # that one is of the machine
        old, new = (np.asarray(picture.reduce(4), dtype=float) for picture in pictures)
        assert np.abs(old - new).mean() < 1, f"{made.name}: run `python docs/learn/run.py`"


def test_a_stale_figure_is_found(tmp_path):
    committed = DOCS / "learn" / "silog.png"
    picture = Image.open(committed).convert("RGB")
    picture.save(tmp_path / "silog.png")
    check_figure(committed, tmp_path / "silog.png")
    width, height = picture.size
    picture.paste((255, 255, 255), (width // 2, 0, width, height // 2))
    picture.save(tmp_path / "silog.png")
    with pytest.raises(AssertionError, match=r"silog\.png: run"):
        check_figure(committed, tmp_path / "silog.png")


def test_every_figure_belongs_to_a_page():
    shown = {name for path in LEARN for name in re.findall(r"\]\((\w+\.(?:png|jpg))\)", path.read_text())}
    assert shown == {path.name for path in (DOCS / "learn").iterdir() if path.suffix not in (".md", ".py")}


def test_the_run_folder_is_as_described(one_run):
    table = (DOCS / "start.md").read_text().partition("| file | content |")[2].partition("\n\n")[0]
    named = re.findall(r"`([\w.]+)`", table)
    assert len(named) == 5 and all((one_run / "runs" / "motorcycle" / "001" / name).is_file() for name in named)


def test_the_loss_in_a_monodepth2_script():
    """The page's difference, applied: the loss of Monodepth2's dictionaries is that of `MonodepthLoss`."""
    path = DOCS / "drop_in_loss.md"
    names = run_python(path, {})
    ((_, change),) = blocks(path.read_text(), "diff")
    lines = [line[1:] for line in change.splitlines() if not line.startswith("-")]
    exec(compile("\n".join(lines), str(path), "exec"), names)
    ((target, sources, K, T),) = frames_of_a_loader()
    options = SimpleNamespace(
        min_depth=0.1, max_depth=100.0, disparity_smoothness=1e-3, frame_ids=[0, -1, "s"], scales=[0, 1, 2, 3]
    )
    names["Trainer"].opt = options
    trainer = names["Trainer"](options)
    trainer.loss.eval()  # without noise
    inputs = {("color", 0, 0): target, ("color", -1, 0): sources[:, 0], ("color", "s", 0): sources[:, 1]}
    inputs |= {"stereo_T": T[:, 1], ("K", 0): torch.block_diag(K[0], torch.ones(1, 1))[None]}
    disparities = [torch.rand(1, 1, 64 >> s, 96 >> s) for s in range(4)]
    outputs = {("disp", s): one for s, one in enumerate(disparities)} | {("cam_T_cam", 0, -1): T[:, 0]}
    got = trainer.compute_losses(inputs, outputs)
    want = losses.MonodepthLoss()(disparities, target, sources, K, T)
    assert torch.equal(got["loss"], want)
    torch.testing.assert_close(sum(got[f"loss/{s}"] for s in range(4)) / 4, want)


# Models, presets and protocols


def test_every_protocol_is_described():
    rows = table(DOCS / "evaluation.md", "your network", "data", "protocol", "alignment")
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[2])}
    own = {"motorcycle", "synthetic", "synthetic_median"}  # of the data that come with the package
    assert named == {*PROTOCOLS, *FLOW_PROTOCOLS} - own
    for _, _, protocols, alignment in rows:
        found = [PROTOCOLS[name].alignment for name in re.findall(r"`(\w+)`", protocols) if name in PROTOCOLS]
        words = {"none": "none", "median": "median", "lsq_disparity": "scale and shift"}
        stated = alignment.split(", ") if ", " in alignment else [alignment] * len(found)
        assert all(text.startswith(words[kind]) for kind, text in zip(found, stated)), protocols


def table(path, *head):
    """The rows of the table with this head, as lists of cells."""
    text = path.read_text().partition(f"| {' | '.join(head)} |\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[1:]]


def test_models_and_their_parameters():
    stated = {}
    for path in SYSTEMS:
        for cell, count in table(path, "model", "parameters"):
            stated |= {name: count for name in re.findall(r"`(\w+)`", cell)}
    with torch.device("meta"):
        counted = {name: sum(p.numel() for p in create_model(name).parameters()) for name in stated}
    assert stated == {name: f"{count:,}" for name, count in counted.items()}
    assert set(stated) == set(list_models())


@cache
def systems_of_presets():
    """The system of each preset, or the network where that is `supervised`; as text, without a parser for each."""
    found = {}
    for name in list_presets():
        values = yaml.safe_load((Path(mdepth_fast.__file__).parent / "configs" / f"{name}.yaml").read_text())
        found[name] = values["model"]["name"] if values["system"] == "supervised" else values["system"]
    return found


@pytest.mark.parametrize("path", SYSTEMS, **by_page)
def test_a_system_has_all_its_presets_and_a_command(path):
    presets = systems_of_presets()
    models = {name for cell, _ in table(path, "model", "parameters") for name in re.findall(r"`(\w+)`", cell)}
    stated = [name for cell, _ in table(path, "preset", "what it trains") for name in re.findall(r"`(\w+)`", cell)]
    own = {presets[name] for name in stated}
    assert own <= models or len(own) == 1
    assert sorted(stated) == [name for name, system in presets.items() if system in own]
    assert any(f"mdepth-fast train {name} " in path.read_text() for name in stated)


def test_every_preset_has_a_page():
    pages = "".join(path.read_text() for path in SYSTEMS)
    assert not {name for name in list_presets() if f"`{name}`" not in pages}


def test_the_list_of_systems_names_every_page():
    index = (DOCS / "systems" / "index.md").read_text()
    assert all(f"]({path.name})" in index for path in SYSTEMS)
