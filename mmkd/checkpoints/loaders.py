"""mmengine's checkpoint loaders, by name prefix."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from mmkd.checkpoints.download import fetch
from mmkd.checkpoints.local import read_bytes, read_file
from mmkd.errors import UserError
from mmkd.torchvision import remedy, requirement

ACCEPTED = "a path, or http://, https://, torchvision://, open-mmlab://, mmcls://, s3://, petrel://"


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint file; refuse unsupported schemes.

    Args:
        filename: the file's path; ``~`` is the home folder.
        map_location: as for `torch.load`, but ``None`` means the CPU.

    Raises:
        UserError: as in `mmkd.checkpoints.local.read_file`.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", filename) or filename.startswith("file:"):
        raise UserError(
            "Unsupported checkpoint address.",
            expected=ACCEPTED,
            found=filename,
            remedy="download the file manually and give its path",
        )
    return read_file(Path(filename), map_location)


def load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Download a checkpoint, or take it from torch.hub's cache, and read it; raises the errors of both."""
    return read_file(fetch(filename), map_location)


def load_from_zoo(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint by its name in a model zoo that mmengine supports.

    Without a working torchvision, names like ``resnet18`` are those of torchvision 0.12, stored in mmengine.

    Raises:
        UserError: the zoo has no such name, or the download fails.
    """
    scheme, _, name = filename.partition("://")
    addresses, lacking = _addresses(scheme)
    if "mmlab" in scheme:
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    if name not in addresses and lacking:
        raise UserError(
            f"{filename} needs the torchvision that belongs to torch {torch.__version__}.",
            expected=requirement(),
            found=lacking,
            remedy=f"{remedy()}, or give the file's URL",
        )
    if name not in addresses:
        near = difflib.get_close_matches(name, addresses, n=5)
        raise UserError(
            f"Unknown model name for {scheme}://.",
            expected=", ".join(near) or f"one of its {len(addresses)} names",
            found=name,
            remedy="correct the name, or give the file's URL",
        )
    address = addresses[name]
    if not address.startswith(("http://", "https://")):  # the user's own file, below mmengine's folder
        address = str(Path(mmengine_checkpoint._get_mmengine_home()) / address)
        return load_from_local(address, map_location)
    if lacking:
        print_log(
            f"cannot import torchvision ({lacking}): according to mmengine, {filename} is {address}",
            "current",
            logging.WARNING,
        )
    try:
        content = load_from_http(address, map_location)
    except UserError as error:
        if not lacking:
            raise
        raise UserError(
            f"Cannot download {filename}.",
            expected=f"{address} to be reachable",
            found=str(error).splitlines()[0],
            remedy=f"download it manually and give the file path; other names need {requirement()}",
        ) from error
    return mmengine_checkpoint._process_mmcls_checkpoint(content) if scheme == "mmcls" else content


def _addresses(scheme: str) -> tuple[Mapping[str, str], str]:
    """A zoo's addresses by name, and why torchvision could not provide them; empty if it could."""
    try:
        return _ZOOS[scheme](), ""
    except Exception as error:  # a broken torchvision fails in many ways
        if scheme not in ("torchvision", "modelzoo"):
            raise
        kept = mmengine.load(Path(mmengine.__path__[0]) / "hub/torchvision_0.12.json")
        return kept, f"{type(error).__name__}: {error}"


def load_from_storage(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint from an object store, through mmengine's own client.

    Raises:
        UserError: the store cannot be reached, or the file cannot be read.
    """
    try:
        content = get_file_backend(filename, backend_args={"backend": "petrel"}).get(filename)
    except Exception as error:
        raise UserError(
            f"Cannot download {filename}.",
            expected="an object store reachable by mmengine's client",
            found=f"{type(error).__name__}: {error}",
            remedy="download it manually and give the file path",
        ) from error
    return read_bytes(bytes(content), filename, map_location)


_ZOOS: dict[str, Callable[[], Mapping[str, str]]] = {
    "modelzoo": mmengine_checkpoint.get_torchvision_models,
    "torchvision": mmengine_checkpoint.get_torchvision_models,
    "open-mmlab": mmengine_checkpoint.get_external_models,
    "openmmlab": mmengine_checkpoint.get_external_models,
    "mmcls": mmengine_checkpoint.get_mmcls_models,
}


def register_loaders() -> None:
    """Make mmengine, and so `load_from`, `resume` and `init_cfg`, read checkpoints as data."""
    register = CheckpointLoader.register_scheme
    # The pavi:// loader uses torch.load.
    register(["", "pavi://"], load_from_local, force=True)
    register(["http://", "https://"], load_from_http, force=True)
    register([f"{scheme}://" for scheme in _ZOOS], load_from_zoo, force=True)
    register([r"(\S+\:)?s3://", r"(\S+\:)?petrel://"], load_from_storage, force=True)
