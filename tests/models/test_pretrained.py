"""Networks in folders as the Hugging Face Hub keeps them, from such a folder and from the Hub's cache; no network."""

import json
import pickle
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import save_file

import mdepth_fast
from mdepth_fast.inference import load_system, load_trained
from mdepth_fast.models import (
    DepthModel,
    FastDepth,
    FlowModel,
    Model,
    PoseModel,
    ResNetEncoder,
    create_model,
    list_models,
    load_checkpoint,
    load_encoder_weights,
)
from mdepth_fast.models.resize import resize_to
from mdepth_fast.weights import create_converted

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def small():
    return create_model("fastdepth", encoder_channels=(8,) * 14, decoder_channels=(8,) * 5, input_size=(64, 96))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Lays files out as the Hub's cache does; the Hub itself cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def add(repo, write, branch="main"):
        folder = tmp_path / "cache" / f"models--{repo.replace('/', '--')}"
        snapshot = folder / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / branch).write_text(COMMIT)
        write(snapshot)

    return add


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", [name for name in list_models() if not name.startswith("tiny_")])
def test_every_network_can_be_made_again(name):
    """On the meta device, as the largest have gigabytes of weights."""
    with torch.device("meta"):
        model = create_model(name)
    # `recipe` makes it and compares every tensor: another number of channels would be said, other names an error.
    assert model.recipe() == (name, {}, False)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("fastdepth_pruned", DepthModel, {"input_size": (96, 128)}),
        ("posecnn", PoseModel, {}),
        ("flownet_s", FlowModel, {"width": 8}),
    ],
)
def test_round_trip(tmp_path, name, kind, options):
    model = create_model(name, **options)
    assert model.save_pretrained(tmp_path / "net") == tmp_path / "net"
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = kind.from_pretrained(tmp_path / "net")
    assert type(again) is type(model) and same(again, model) and not again.training
    assert again.created_as == (name, options)
    # Every other reader takes the folder, or its file, as well.
    assert same(create_converted(tmp_path / "net" / "model.safetensors"), model)
    other = create_model(name, **options)
    load_checkpoint(other, tmp_path / "net")
    assert same(other, model)
    if kind is DepthModel:
        net = mdepth_fast.load(tmp_path / "net")
        assert same(net, model) and net.input_size == (96, 128)
        with pytest.raises(ValueError, match="checkpoint: expected a run folder to choose best from"):
            load_trained(tmp_path / "net", checkpoint="best")
        with pytest.raises(ValueError, match="got one network, of save_pretrained"):
            load_system(tmp_path / "net")


def test_what_was_changed_after_the_network_was_made(tmp_path):
    model = small()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for key, value in state.items():  # 6 of the 8 channels that unit 2 gives and unit 3 takes
        if key.startswith(("encoder.2.3", "encoder.2.4", "encoder.3.0", "encoder.3.1")) and value.dim():
            state[key] = value[:6]
        elif key == "encoder.3.3.weight":
            state[key] = value[:, :6]
    resize_to(model, state)
    model.input_size = (32, 64)
    model.created_as[1]["encoder_weights"] = "a file of this machine"
    again = Model.from_pretrained(model.save_pretrained(tmp_path))
    assert same(again, model) and again.input_size == (32, 64)
    assert "encoder_weights" not in json.loads((tmp_path / "config.json").read_text())["options"]
    images = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(again(images), model.eval()(images))
    assert same(Model.from_pretrained(again.save_pretrained(tmp_path / "twice")), model)


def test_networks_that_cannot_be_made_again(tmp_path):
    with pytest.raises(ValueError, match="FastDepth: expected a network that create_model made"):
        FastDepth().save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match="save it before optimize_for_inference"):
        create_model("monodepth2_resnet18").optimize_for_inference().save_pretrained(tmp_path / "net")
    dorn = create_model("dorn_resnet101_nyu", width=2, window=(49, 65))
    dorn.input_size = (97, 97)
    with pytest.raises(ValueError, match="input_size: dorn_resnet101_nyu cannot be made with another one"):
        dorn.save_pretrained(tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_the_card(tmp_path):
    create_model("flownet_s", width=8).save_pretrained(tmp_path / "flow")
    card = ModelCard.load(tmp_path / "flow" / "README.md")
    assert card.data.library_name == "mdepth_fast" and card.data.license == "unknown"
    assert card.data.pipeline_tag is None and "Licence of these weights: not stated." in card.text
    model = small()
    model.save_pretrained(tmp_path / "depth")
    text = (tmp_path / "depth" / "README.md").read_text()
    assert ModelCard(text).data.pipeline_tag == "depth-estimation"
    assert "FastDepth (Wofk, Ma, Yang" in text and "metric depth along the optical axis, in m" in text
    (tmp_path / "depth" / "README.md").write_text("mine")
    model.save_pretrained(tmp_path / "depth")
    assert (tmp_path / "depth" / "README.md").read_text() == "mine"
    model.save_pretrained(tmp_path / "depth", card="newer")
    assert (tmp_path / "depth" / "README.md").read_text() == "newer"


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "there is no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "there is no model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, r"config.json: not a JSON file"),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), ValueError, "got that of something else"),
        (lambda f: change(f, model="fastdept"), ValueError, r"config.json: .*did you mean fastdepth"),
        (lambda f: change(f, options=[1]), ValueError, r"config.json: expected the name of a model and its options"),
        (lambda f: change(f, options={"width": 3}), ValueError, r"config.json: .*unexpected keyword argument 'width'"),
        (lambda f: change(f, options={"encoder_weights": "/etc/passwd"}), ValueError, "config.json: expected the name"),
        (lambda f: change(f, model="posecnn", options={}), ValueError, r"safetensors: does not fit the model"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x08"), ValueError, "safetensors: damaged, truncated"),
    ],
)
def test_broken_folders(tmp_path, harm, error, message):
    small().save_pretrained(tmp_path)
    harm(tmp_path)
    with pytest.raises(error, match=message):
        Model.from_pretrained(tmp_path)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_nothing_that_is_read_can_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small().save_pretrained("net")
    Path("net/model.safetensors").write_bytes(pickle.dumps(Bomb()))
    Path("net/pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    for read in (Model.from_pretrained, load_trained, lambda path: load_checkpoint(small(), path)):
        with pytest.raises(ValueError, match=r"model.safetensors: damaged, truncated"):
            read("net")
    assert not Path("exploded").exists()


def test_wrong_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small().save_pretrained("net")
    with pytest.raises(ValueError, match="net: expected a network of the class PoseModel, got a FastDepth"):
        PoseModel.from_pretrained("net")
    for path in ("nothing", "./a/b", "/no/such/folder", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="expected a folder that save_pretrained wrote, or a repository"):
            Model.from_pretrained(path)
    for path in ("hub:user", "hub:", "hub:user/../x"):
        with pytest.raises(ValueError, match="expected hub:user/repo, with /file or @revision"):
            load_trained(path)
    with pytest.raises(ValueError, match="expected a whole repository, hub:user/repo, got a file in one"):
        load_trained("hub:user/repo/model.safetensors")


def test_from_the_hub(cache):
    model = small()
    cache("user/net", model.save_pretrained)
    cache("user/tagged", model.save_pretrained, branch="v1")
    for path in ("user/net", "hub:user/net", f"user/net@{COMMIT}", "hub:user/tagged@v1"):
        assert same(Model.from_pretrained(path), model)
    assert same(Model.from_pretrained("user/tagged", revision="v1"), model)
    assert same(mdepth_fast.load("hub:user/net"), model)
    other = small()
    load_checkpoint(other, "hub:user/net")
    assert same(other, model)
    for path, file in (("user/other", "model.safetensors"), ("user/tagged", "model.safetensors")):
        with pytest.raises(FileNotFoundError, match=f"hub:{path}: {file} is not in the local cache and could not") as e:
            Model.from_pretrained(path)
        assert "\n" not in str(e.value) and "without a network, give a local file or folder" in str(e.value)


def test_imagenet_encoders_from_the_hub_and_from_a_file(cache, tmp_path):
    source = ResNetEncoder(18)
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    state = {key: value.contiguous() for key, value in source.state_dict().items()} | classifier
    cache("timm/resnet18.tv_in1k", lambda folder: save_file(state, folder / "model.safetensors"))
    save_file(state, tmp_path / "resnet18.safetensors")
    named = "hub:timm/resnet18.tv_in1k"
    for path in (f"{named}/model.safetensors", tmp_path / "resnet18.safetensors"):
        encoder = ResNetEncoder(18)
        load_encoder_weights(encoder, path)
        assert same(encoder, source)
    model = create_model("monodepth2_resnet18", encoder_weights=named)
    assert same(model.encoder, source)
    assert model.recipe()[1] == {}
    with pytest.raises(FileNotFoundError, match=r"hub:timm/resnet34.tv_in1k: model.safetensors is not in the local"):
        create_model("monodepth2_resnet34", encoder_weights="hub:timm/resnet34.tv_in1k")


def test_without_huggingface_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    model = small()
    assert same(Model.from_pretrained(model.save_pretrained(tmp_path)), model)
    with pytest.raises(ImportError, match=r'hub:user/net: needs huggingface_hub: pip install "mdepth-fast\[hub\]"'):
        Model.from_pretrained("user/net")
    with pytest.raises(ImportError, match="push_to_hub: needs huggingface_hub"):
        model.push_to_hub("user/net")


def test_push(monkeypatch):
    model, sent = small(), {}

    def upload(**options):
        sent.update(options, files={path.name: path.read_bytes() for path in Path(options["folder_path"]).iterdir()})
        return "https://example.org/user/net"

    api = mock.create_autospec(HfApi, instance=True)
    api.create_repo.return_value.repo_id = "user/net"
    api.upload_folder.side_effect = upload
    monkeypatch.setattr("huggingface_hub.HfApi", lambda token: api)
    assert model.push_to_hub("net", card="text", private=True) == "https://example.org/user/net"
    api.create_repo.assert_called_once_with("net", private=True, exist_ok=True)
    assert sent["repo_id"] == "user/net" and sent["files"]["README.md"] == b"text"
    assert sorted(sent["files"]) == ["README.md", "config.json", "model.safetensors"]
    assert not Path(sent["folder_path"]).exists()
