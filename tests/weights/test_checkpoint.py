"""Published folders, plain state dicts, Lightning checkpoints, and files that are broken."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from released_blobs import released_blobs
from safetensors.torch import save_file

from mdepth_fast.bench import plain_monodepth2
from mdepth_fast.inference.trained import _layers as layers_of_published
from mdepth_fast.inference.trained import load_trained
from mdepth_fast.models import (
    DORN,
    Monodepth2,
    PoseCNN,
    PoseNet,
    PredictiveMask,
    ResNetEncoder,
    SharedPoseNet,
    create_model,
    list_models,
    load_checkpoint,
    load_encoder_weights,
    registry,
)
from mdepth_fast.weights import convert_content
from mdepth_fast.weights.identify import skeleton

CLASSIFIER = {"encoder.fc.weight": torch.zeros(1000, 512), "encoder.fc.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as published, of random weights and random running statistics, and the plain nets it came from."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("mono_640x192")
    depth, pose = plain_monodepth2.PlainDepthNet(), plain_monodepth2.PlainPoseNet()
    for net in (depth, pose):
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    entries = {"height": 192, "width": 640, "use_stereo": False}
    torch.save(depth.encoder.state_dict() | CLASSIFIER | entries, folder / "encoder.pth")
    torch.save(depth.decoder.state_dict(), folder / "depth.pth")
    torch.save(pose.encoder.state_dict() | CLASSIFIER, folder / "pose_encoder.pth")
    torch.save(pose.decoder.state_dict(), folder / "pose.pth")
    return folder, depth.eval(), pose.eval()


def rewrite(folder, target, name, change):
    """Copy a published folder to `target` with the content of one file changed."""
    for file in folder.iterdir():
        content = torch.load(file, weights_only=True)
        torch.save(change(content) if file.name == name else content, target / file.name)


def without(key):
    return lambda content: {k: v for k, v in content.items() if k != key}


def test_published_depth_net(published):
    folder, reference, _ = published
    net = Monodepth2().eval()
    load_checkpoint(net, folder)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for y, z in zip(net(x), reference(x), strict=True):
            torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-6)
    assert net.input_size == (192, 640)


def test_published_pose_net(published):
    folder, _, reference = published
    net = PoseNet().eval()
    load_checkpoint(net, str(folder))
    x, y = torch.rand(2, 1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(net(x, y), reference(x, y), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("file", "key", "create", "place"),
    [
        ("encoder.pth", "encoder.layer3.0.downsample.0.weight", Monodepth2, "encoder.layer3.0.downsample.0.weight"),
        ("depth.pth", "decoder.0.conv.conv.weight", Monodepth2, "decoder.levels.0.reduce.weight"),
        ("depth.pth", "decoder.7.conv.conv.bias", Monodepth2, "decoder.levels.3.merge.bias"),
        ("depth.pth", "decoder.13.conv.weight", Monodepth2, "decoder.heads.3.weight"),
        ("pose_encoder.pth", "encoder.conv1.weight", PoseNet, "encoder.conv1.weight"),
        ("pose.pth", "net.3.bias", PoseNet, "decoder.3.bias"),
    ],
)
def test_a_value_lands_in_its_layer(published, tmp_path, file, key, create, place):
    def mark(content):
        return content | {key: torch.full_like(content[key], 7.25)}

    rewrite(published[0], tmp_path, file, mark)
    net = create()
    load_checkpoint(net, tmp_path)
    marked = {name for name, value in net.state_dict().items() if (value == 7.25).all()}
    assert marked == {place}


def test_published_pose_cnn(tmp_path):
    source, net = PoseCNN(), PoseCNN()
    keys = {f"net.{n}.{part}" for n in range(7) for part in ("weight", "bias")}
    assert set(source.state_dict()) == keys | {"pose_conv.weight", "pose_conv.bias"}
    torch.save(source.state_dict(), tmp_path / "pose.pth")
    load_checkpoint(net, tmp_path)
    assert torch.equal(net.net[4].weight, source.net[4].weight)


@pytest.mark.parametrize("name", ["monodepth2_resnet18", "posenet_resnet18", "posecnn"])
def test_own_state_dict(tmp_path, name):
    source, net = create_model(name), create_model(name)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    load_checkpoint(net, tmp_path / "weights.pt")
    for a, b in zip(source.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_lightning_checkpoint(tmp_path):
    depth, pose = Monodepth2(), PoseCNN()
    state = {f"depth_net.{k}": v for k, v in depth.state_dict().items()}
    state |= {f"pose_net.{k}": v for k, v in pose.state_dict().items()} | {"loss.weight": torch.ones(1)}
    torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": {"lr": 1e-4}}, tmp_path / "last.ckpt")
    for source in (depth, pose):
        net = type(source)()
        load_checkpoint(net, tmp_path / "last.ckpt")
        for a, b in zip(source.state_dict().values(), net.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    torch.save({"state_dict": {"other.weight": torch.ones(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt: .*depth_net\.\*, found none"):
        load_checkpoint(depth, tmp_path / "other.ckpt")


def test_counters_of_old_batch_norms_may_be_missing(published, tmp_path):
    def drop(content):
        return {k: v for k, v in content.items() if not k.endswith("num_batches_tracked")}

    rewrite(published[0], tmp_path, "encoder.pth", drop)
    load_checkpoint(Monodepth2(), tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("depth.pth", without("decoder.2.conv.conv.bias"), r"1 keys missing \(decoder\.2\.conv\.conv\.bias\)"),
        ("encoder.pth", lambda c: c | {"encoder.extra": torch.ones(1)}, r"1 keys unexpected \(encoder\.extra\)"),
        ("encoder.pth", lambda c: c | {"epoch": 3}, r"1 keys unexpected \(epoch\)"),
        (
            "depth.pth",
            lambda c: c | {"decoder.10.conv.bias": torch.ones(2)},
            r"decoder\.10\.conv\.bias: expected shape \(1,\), got \(2,\)",
        ),
        ("depth.pth", lambda c: c | {"decoder.10.conv.bias": 3}, r"decoder\.10\.conv\.bias: .*int"),
        ("depth.pth", lambda c: {}, r"28 keys missing \(.*, \.\.\.\)"),
        ("depth.pth", lambda c: [1, 2], "expected a dictionary of tensors, got list"),
    ],
)
def test_files_that_do_not_fit_change_nothing(published, tmp_path, file, change, message):
    rewrite(published[0], tmp_path, file, change)
    net = Monodepth2()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(net, tmp_path)
    assert str(tmp_path / file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.input_size is None


def test_weights_of_another_net(published):
    with pytest.raises(ValueError, match=r"encoder\.pth: does not fit the model: .*keys missing"):
        load_checkpoint(Monodepth2(50), published[0])


def test_missing_files(published, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such checkpoint file"):
        load_checkpoint(PoseCNN(), tmp_path / "nowhere.pt")
    (tmp_path / "encoder.pth").write_bytes((published[0] / "encoder.pth").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"depth\.pth: no such checkpoint file"):
        load_checkpoint(Monodepth2(), tmp_path)


class Unpicklable:
    pass


@pytest.mark.parametrize("fault", ["truncated", "empty", "text", "object"])
def test_broken_files(tmp_path, fault):
    path = tmp_path / "weights.pt"
    torch.save(PoseCNN().state_dict(), path)
    whole = path.read_bytes()
    if fault == "object":
        torch.save({"state_dict": {}, "model": Unpicklable()}, path)
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"not a checkpoint"}[fault])
    refusal = "refused: it holds" if fault == "object" else "damaged, truncated or not a checkpoint of plain tensors"
    with pytest.raises(ValueError, match=rf"weights\.pt: {refusal}") as caught:
        load_checkpoint(PoseCNN(), path)
    assert "\n" not in str(caught.value)


def test_imagenet_initialisation(tmp_path):
    """Two equal images through the tiled conv1 of a pose net give what one image gives in a depth net."""
    torch.manual_seed(0)
    source = ResNetEncoder(18)
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(source.state_dict() | classifier, tmp_path / "resnet18.pth")
    depth = Monodepth2(encoder_weights=tmp_path / "resnet18.pth")
    pose = create_model("posenet_resnet18", encoder_weights=str(tmp_path / "resnet18.pth"))
    assert torch.equal(depth.encoder.conv1.weight, source.conv1.weight)
    assert torch.equal(pose.encoder.conv1.weight, torch.cat([source.conv1.weight] * 2, 1) / 2)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        one, two = depth.eval().encoder.last(x), pose.eval().encoder.last(torch.cat([x, x], 1))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"resnet18\.pth: does not fit"):
        load_encoder_weights(ResNetEncoder(50), tmp_path / "resnet18.pth")


def changed_like(state):
    """Other values of the same shapes."""
    return {key: torch.rand(value.shape).to(value.dtype) for key, value in state.items()}


def write(path, state):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    else:
        torch.save(state, path)


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "pth.tar", "safetensors", "npz"])
def test_every_format(tmp_path, suffix):
    net = PoseCNN()
    state = changed_like(net.state_dict())
    write(tmp_path / f"weights.{suffix}", state)
    load_checkpoint(net, tmp_path / f"weights.{suffix}")
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_a_dictionary_that_numpy_pickled(tmp_path):
    net = PoseCNN()
    state = changed_like(net.state_dict())
    np.save(tmp_path / "weights.npy", {key: value.numpy() for key, value in state.items()}, allow_pickle=True)
    load_checkpoint(net, tmp_path / "weights.npy")
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"epoch": 3, "model": state, "optimizer": {"state": {}}},
        lambda state: {"state_dict": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "arch": "posecnn"},
        lambda state: {"model": {"state_dict": state}},
    ],
)
def test_wrappings(tmp_path, wrap):
    net = PoseCNN()
    state = changed_like(net.state_dict())
    torch.save(wrap(state), tmp_path / "weights.pth.tar")
    load_checkpoint(net, tmp_path / "weights.pth.tar")
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("fault", ["truncated", "empty", "text"])
def test_broken_files_of_other_formats(tmp_path, suffix, fault):
    path = tmp_path / f"weights.{suffix}"
    write(path, PoseCNN().state_dict())
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"not a checkpoint"}[fault])
    with pytest.raises(ValueError, match=rf"weights\.{suffix}: damaged, truncated or not a checkpoint") as caught:
        load_checkpoint(PoseCNN(), path)
    assert "\n" not in str(caught.value)


def test_archives_of_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "weights.npz", weights=np.array([Unpicklable()], dtype=object))
    with pytest.raises(ValueError, match=r"weights\.npz: refused: it holds Python objects, such as .*Unpicklable"):
        load_checkpoint(PoseCNN(), tmp_path / "weights.npz")


def test_python_objects_are_refused_with_the_way_out(tmp_path):
    torch.save({"model": Unpicklable()}, tmp_path / "weights.pth.tar")
    with pytest.raises(ValueError, match=r"such as .*Unpicklable; .*convert --trust-pickle.*; a pickle can run code"):
        load_checkpoint(PoseCNN(), tmp_path / "weights.pth.tar")


@pytest.mark.parametrize(
    ("source", "target", "wrap"),
    [
        ("posecnn", "posenet_resnet18", lambda state: state),
        ("posenet_resnet18", "posecnn", lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}),
        ("monodepth2_resnet18", "posecnn", lambda state: {f"depth_net.{k}": v for k, v in state.items()}),
    ],
)
def test_a_checkpoint_of_another_model_is_recognised(tmp_path, source, target, wrap):
    state = create_model(source).state_dict()
    torch.save(wrap(state), tmp_path / "weights.pth")
    net = create_model(target)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=rf"the likely model: {source}, which shares 100% of the tensors") as caught:
        load_checkpoint(net, tmp_path / "weights.pth")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message
    own = {key for key in before if not key.endswith("num_batches_tracked")}
    missing = sorted(own - state.keys())
    assert f"{len(missing)} keys missing ({', '.join(missing[:10])}, ...)" in message
    unexpected = next(part for part in message.split("; ") if "unexpected" in part)
    assert unexpected.count(", ") == 10 and unexpected.endswith(", ...)")  # the first ten


def test_published_files_of_another_model_are_recognised(tmp_path, published, monkeypatch):
    with pytest.raises(ValueError, match=r"the likely model: monodepth2_resnet18 or monodepth2_resnet34, which"):
        load_checkpoint(PoseCNN(), published[0] / "depth.pth")
    small = functools.partial(DORN, width=2, window=(49, 65), K=5)
    monkeypatch.setitem(registry._FACTORIES, "small_dorn", small)
    np.savez(tmp_path / "blobs.npz", **released_blobs("nyu"))
    with pytest.raises(ValueError, match=r"aspp_1/soft/0, .*the likely model: small_dorn, which shares 100%"):
        load_checkpoint(PoseCNN(), tmp_path / "blobs.npz")


def test_what_is_no_model_is_not_guessed(tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"1 keys unexpected \(weight\); it is like no registered model"):
        load_checkpoint(PoseCNN(), tmp_path / "weights.pth")


def test_published_files_of_the_ablations(tmp_path):
    """The predicted mask and the shared pose network, under the published names and of the published shapes."""
    channels = (64, 64, 128, 256, 512)
    features = [torch.rand(1, width, 64 >> n, 64 >> n) for n, width in enumerate(channels, 1)]
    mask, plain = PredictiveMask(channels, 2), plain_monodepth2.PlainDecoder(channels)
    for head in plain.decoder[10:]:
        head.conv = torch.nn.Conv2d(head.conv.in_channels, 2, 3)
    torch.save(plain.state_dict(), tmp_path / "predictive_mask.pth")
    load_checkpoint(mask, tmp_path)
    with torch.no_grad():
        for got, want in zip(mask(features), plain(features), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    for frames in (2, 3):
        pose = SharedPoseNet(frames=frames)
        shapes = {key: tuple(value.shape) for key, value in pose.publish()["pose.pth"].items() if "weight" in key}
        outputs = 6 * (frames - 1)
        assert list(shapes.values()) == [
            (256, 512, 1, 1),
            (256, 256 * frames, 3, 3),
            (256, 256, 3, 3),
            (outputs, 256, 1, 1),
        ]
        assert list(shapes) == [f"net.{n}.weight" for n in range(4)]


def test_a_published_folder_is_written_and_read(published, tmp_path):
    """All files of a folder, key for key, with the entries that published scripts ask for."""
    folder = published[0]
    depth, pose = Monodepth2(), PoseNet()
    for net in (depth, pose):
        load_checkpoint(net, folder)
    files = depth.publish() | pose.publish()
    for name, content in files.items():
        want = torch.load(folder / name, weights_only=True)
        assert content.keys() == want.keys(), name
        assert all(
            torch.equal(value, want[key]) if isinstance(value, torch.Tensor) else value == want[key]
            for key, value in content.items()
        )
    with pytest.raises(ValueError, match=r"published files stand for 0\.1 to 100, got 1 to 100"):
        Monodepth2(min_depth=1.0).publish()
    with pytest.raises(ValueError, match=r"published files stand for 0\.54 to 540 m, got 0\.1 to 100"):
        Monodepth2(unit="m").publish()


@pytest.mark.parametrize("name", ["pose_encoder", "posecnn"])
def test_published_translations_follow_the_unit_of_depth(tmp_path, name):
    pose = PoseNet() if name == "pose_encoder" else PoseCNN()
    images = torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        before = pose.eval()(*images)
        pose.scale_translation(5.4)
        after = pose(*images)
    torch.testing.assert_close(after[0], before[0])
    # posecnn's is multiplied by 1 / depth, which is 1 / 5.4 of what it was.
    torch.testing.assert_close(after[1], before[1] * (5.4 if name == "pose_encoder" else 5.4**2))


@pytest.mark.parametrize(
    ("layers", "suffix"), [(18, "pth"), (18, "safetensors"), (34, "safetensors"), (50, "pth"), (152, "safetensors")]
)
def test_imagenet_weights_of_encoders_and_formats(tmp_path, layers, suffix):
    path = tmp_path / f"resnet.{suffix}"
    with torch.device("meta"):
        shapes = ResNetEncoder(layers).state_dict()
    state = {key: torch.full(value.shape, 0.25, dtype=value.dtype) for key, value in shapes.items()}
    state = {key: value for key, value in state.items() if not (suffix == "pth" and key.endswith("tracked"))}
    state |= {"fc.weight": torch.zeros(1000, 2), "fc.bias": torch.zeros(1000)}
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    encoder = ResNetEncoder(layers)
    load_encoder_weights(encoder, path)
    assert all((value == 0.25).all() for key, value in encoder.state_dict().items() if not key.endswith("tracked"))
    if layers > 34:
        return
    three = ResNetEncoder(18, in_channels=9)
    if layers == 18:
        load_encoder_weights(three, path)
        assert three.conv1.weight.shape[1] == 9 and (three.conv1.weight == 0.25 / 3).all()
    else:
        with pytest.raises(ValueError, match=rf"resnet\.{suffix}: does not fit the model: .*keys (missing|unexpected)"):
            load_encoder_weights(three, path)


def test_the_layers_of_a_published_encoder_are_told_by_its_keys():
    for layers in (18, 34, 50, 101, 152):
        with torch.device("meta"):
            encoder = ResNetEncoder(layers)
        assert layers_of_published({f"encoder.{key}": value for key, value in encoder.state_dict().items()}) == layers


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + bytes(64)])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_is_no_imagenet_weights_is_one_error(tmp_path, suffix, content):
    path = tmp_path / f"resnet.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"resnet\.{suffix}: damaged, truncated or not a checkpoint") as caught:
        load_encoder_weights(ResNetEncoder(18), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "net.", "model.module._orig_mod."])
def test_prefixes_are_taken_off_for_every_model(packaged_only, prefix):
    for name in list_models():
        state = skeleton(name).state_dict()
        wrapped = {"epoch": 3, "state_dict": {"model": {prefix + key: value for key, value in state.items()}}}
        found = convert_content(wrapped, Path("net.pth"), name)[2]
        assert found.keys() == state.keys() and all(found[key] is state[key] for key in state), name


def test_a_wrapped_folder_of_two_scales(published, tmp_path):
    def wrap(content):
        entries = {key: value for key, value in content.items() if not isinstance(value, torch.Tensor)}
        return {"model": {f"module._orig_mod.{key}": content[key] for key in content.keys() - entries} | entries}

    for file in published[0].iterdir():
        content = torch.load(file, weights_only=True)
        if file.name == "depth.pth":
            content = {k: v for k, v in content.items() if not k.startswith(("decoder.12.", "decoder.13."))}
        torch.save(wrap(content), tmp_path / file.name)
    net = load_trained(tmp_path).net
    assert net.scales == (0, 1) and net.input_size == (192, 640)
    assert net.recipe()[:2] == ("monodepth2_resnet18", {"scales": (0, 1), "input_size": (192, 640)} | RANGE)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for y, z in zip(net(x), published[1](x)):
            torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-6)


RANGE = {"min_depth": 0.1, "max_depth": 100.0, "unit": None}


def test_the_nearest_names_are_given(tmp_path):
    state = PoseCNN().state_dict()
    torch.save(
        {key.replace("pose_conv", "pose_convolution"): value for key, value in state.items()}, tmp_path / "x.pth"
    )
    with pytest.raises(
        ValueError, match=r"nearest: pose_convolution\.bias to pose_conv\.bias, pose_convolution\.weight to "
    ):
        load_checkpoint(PoseCNN(), tmp_path / "x.pth")
