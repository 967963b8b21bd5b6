"""Networks in a folder, as the Hugging Face Hub keeps them: config.json, model.safetensors and README.md.

The methods have the names and arguments of huggingface_hub's mixin. They do not inherit it: it rebuilds a model from
the arguments of its class, and these networks are made by a registered name, and may have been pruned since. Besides,
only what reaches for the Hub needs huggingface_hub.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mdepth_fast.files import replacing
from mdepth_fast.models.registry import create_model
from mdepth_fast.models.resize import resize_to
from mdepth_fast.weights.card import model_card
from mdepth_fast.weights.converted import write_converted
from mdepth_fast.weights.hub import CONFIG, WEIGHTS, hub_folder, is_on_hub
from mdepth_fast.weights.match import matched
from mdepth_fast.weights.read import read_content

__all__ = ["Pretrained"]

_LIBRARY = "mdepth_fast"
_INITIAL = "encoder_weights"  # only what a network starts from: a path of one machine, and no part of the network
P = TypeVar("P", bound="Pretrained")


class Pretrained(nn.Module):
    """A network made by `create_model`, which can be written to a folder and read back."""

    created_as: tuple[str, dict[str, Any]] | None = None  # name and options, set by `create_model`

    def recipe(self) -> tuple[str, dict[str, Any], bool]:
        """Name and options with which `create_model` makes this network, and whether it has other numbers of channels.

        ValueError for a network that was not made by `create_model`, or whose parts have been changed since.
        """
        if self.created_as is None:
            raise ValueError(f"{type(self).__name__}: expected a network that create_model made")
        name, options = self.created_as[0], {k: _plain(k, v) for k, v in self.created_as[1].items() if k != _INITIAL}
        new = _without_memory(name, options)
        size = getattr(self, "input_size", None)
        if size != getattr(new, "input_size", None):  # set after the network was made
            options["input_size"] = size
            try:
                new = _without_memory(name, options)
            except TypeError as error:
                raise ValueError(f"input_size: {name} cannot be made with another one than its own") from error
        own, made = self.state_dict(), new.state_dict()
        if own.keys() != made.keys():
            raise ValueError(
                f"{name}: expected the network as create_model makes it, got one of other parts; save it before "
                "optimize_for_inference"
            )
        return name, options, any(own[key].shape != made[key].shape for key in own)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, card: str | None = None) -> Path:
        """Writes config.json, model.safetensors and README.md to a folder that `from_pretrained` reads; returns it.

        The folder may exist; a file in it is replaced once its successor is complete. README.md is `card`, the model
        card. Without one, an existing README.md stays, and a missing one says what the network is.

        ValueError for a network that cannot be made again (see `recipe`), ImportError without safetensors.
        """
        folder = Path(save_directory)
        name, options, resized = self.recipe()
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"save_directory: expected a folder, got the file {folder}")
        config = {"library_name": _LIBRARY, "model": name, "options": options, "resized": resized}
        write_converted(folder / WEIGHTS, name, options, self.state_dict(), source=_LIBRARY, resized=resized)
        _write(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        if card is not None or not (folder / "README.md").exists():
            _write(folder / "README.md", card or model_card(name, self))
        return folder

    @classmethod
    def from_pretrained(
        cls: type[P],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        **options: Any,
    ) -> P:
        """The network of a folder that `save_pretrained` wrote or of the Hub's repository `user/repo`, in eval mode.

        A folder on this machine needs no network and no huggingface_hub. A repository is downloaded once; later, or
        with HF_HUB_OFFLINE=1, it comes from the cache. `options` are those of huggingface_hub's download: cache_dir,
        token, force_download, local_files_only. Nothing that is read can run code.

        FileNotFoundError where there is neither folder nor repository, ValueError for files that do not fit or a
        network of another class than this one, ImportError where a package is missing.
        """
        path = os.fspath(pretrained_model_name_or_path)
        if not Path(path).is_dir():
            if not is_on_hub(path):
                if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.@-]*", path):
                    raise FileNotFoundError(
                        f"{path}: expected a folder that save_pretrained wrote, or a repository user/repo of the Hub"
                    )
                path = f"hub:{path}"
            path = str(hub_folder(f"{path}@{revision}" if revision else path, **options))
        model = _read(Path(path))
        if not isinstance(model, cls):
            raise ValueError(f"{path}: expected a network of the class {cls.__name__}, got a {type(model).__name__}")
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str | None = None,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Add the network",
    ) -> str:
        """Writes the files of `save_pretrained` to the repository `user/repo`, made if missing; returns the address."""
        try:
            from huggingface_hub import HfApi
        except ModuleNotFoundError as error:
            raise ImportError('push_to_hub: needs huggingface_hub: pip install "mdepth-fast[hub]"') from error
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card)
            api = HfApi(token=token)
            repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            return str(
                api.upload_folder(repo_id=repo, folder_path=folder, revision=revision, commit_message=commit_message)
            )


def _read(folder: Path) -> Pretrained:
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder}: expected a folder that save_pretrained wrote, there is no {file}")
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(config, Mapping) or config.get("library_name") != _LIBRARY:
        raise ValueError(f"{path}: expected the configuration of a network of mdepth_fast, got that of something else")
    name, options = config.get("model"), config.get("options", {})
    if not isinstance(name, str) or not isinstance(options, Mapping) or _INITIAL in options:
        raise ValueError(f"{path}: expected the name of a model and its options, got {name!r} and {options!r}")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        model: Pretrained = create_model(name, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    state: dict[str, Tensor] = read_content(folder / WEIGHTS)
    if config.get("resized"):
        resize_to(model, state)
    else:
        model.load_state_dict(matched(state, model.state_dict(), folder / WEIGHTS))
    return model.eval()


def _without_memory(name: str, options: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)


def _plain(name: str, value: Any) -> Any:
    """An option as JSON can hold it."""
    if isinstance(value, Tensor):
        value = value.tolist()
    value = list(value) if isinstance(value, tuple) else value
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an option that JSON can hold, got {value!r}") from error
    return tuple(value) if isinstance(value, list) else value


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
