"""Files of the Hugging Face Hub: from its cache or, where there is a network, downloaded into it.

A file is named `hub:user/repo`, which stands for its model.safetensors, or `hub:user/repo/path/in/repo.safetensors`;
`hub:user/repo@revision` is that of a branch, tag or commit.
"""

import os
import re
from pathlib import Path
from typing import Any

__all__ = ["CONFIG", "WEIGHTS", "hub_folder", "is_on_hub", "local_file"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_PREFIX = "hub:"
_NAME = re.compile(r"hub:(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[^@\s]+))?")


def is_on_hub(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names a file or folder of the Hub."""
    return os.fspath(path).startswith(_PREFIX)


def local_file(path: str | os.PathLike[str], **options: Any) -> Path:
    """`path` itself or, if it names a file of the Hub, that file in the local cache.

    `options` go to `huggingface_hub.hf_hub_download` (cache_dir, token, ...). Raises ValueError for a name that is
    none, FileNotFoundError for a file that is not to be had, ImportError without huggingface_hub.
    """
    if not is_on_hub(path):
        return Path(path)
    repo, file, revision = _parsed(path)
    return _fetched(repo, file or WEIGHTS, revision, options)


def hub_folder(path: str | os.PathLike[str], **options: Any) -> Path:
    """The folder with config.json and model.safetensors of a repository `hub:user/repo`; errors as in `local_file`."""
    repo, file, revision = _parsed(path)
    if file:
        raise ValueError(f"{path}: expected a whole repository, hub:user/repo, got a file in one")
    # The configuration last: both are of one revision, that of the folder that it lies in.
    _fetched(repo, WEIGHTS, revision, options)
    return _fetched(repo, CONFIG, revision, options).parent


def _parsed(path: str | os.PathLike[str]) -> tuple[str, str | None, str | None]:
    found = _NAME.fullmatch(os.fspath(path))
    if not found:
        raise ValueError(f"{path}: expected hub:user/repo, with /file or @revision behind it if need be")
    return found["repo"], found["file"], found["revision"]


def _fetched(repo: str, file: str, revision: str | None, options: dict[str, Any]) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise ImportError(f'hub:{repo}: needs huggingface_hub: pip install "mdepth-fast[hub]"') from error
    try:
        return Path(hf_hub_download(repo, file, revision=revision, **options))
    except Exception as error:  # of the Hub, of its client, of the network: each has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(
            f"hub:{repo}: {file} is not in the local cache and could not be downloaded ({reason[:300]}); without a "
            "network, give a local file or folder"
        ) from error
