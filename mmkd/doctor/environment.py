"""Check versions, operators, devices and disk space."""

from __future__ import annotations

import importlib
import importlib.metadata
import netrc
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.utils import digit_version
from mmengine.visualization import WandbVisBackend

from mmkd.doctor.findings import Finding
from mmkd.doctor.setup import TrainingSetup
from mmkd.registry import VISBACKENDS, is_kind
from mmkd.visualization import WandbBackend

# Minimum, exclusive maximum, and the newest version tested (docs/stacks.md, including forks). mmdet itself
# refuses an incompatible mmcv.
SUPPORTED = {
    "python": ("3.10", "3.13", "3.12"),
    "torch": ("2.1", None, "2.13"),
    "numpy": ("1.26", None, "2"),
    "mmengine": ("0.10.4", "1", "0.10.12"),
    "mmcv": ("2.0.1", None, "2.3"),
    "mmdet": ("3.2", "4", "3.5"),
}
_LITTLE_DISK_GB = 2.0
_INSTALL = "see 'Install' in mmkd's README for supported versions"


def examine_environment(setup: TrainingSetup) -> Iterator[Finding]:
    """Check versions and their compatibility, mmcv's operators, devices, the work dir, W&B."""
    yield from versions({name: _version(name) for name in [*SUPPORTED, "mmkd"]})
    yield _operators(setup.device)
    yield _devices()
    yield from _work_dir(Path(setup.cfg.get("work_dir") or "work_dirs"))
    backends = (setup.cfg.get("visualizer") or {}).get("vis_backends") or []
    if any(is_kind(one, WandbVisBackend, WandbBackend, registry=VISBACKENDS) for one in backends):
        yield _wandb()


def versions(found: dict[str, str]) -> Iterator[Finding]:
    """Check that package versions are among those that mmkd supports."""
    known: list[str] = []
    for name, version in found.items():
        known.append(f"{name} {version}")
        if name not in SUPPORTED:
            continue
        low, high, tested = SUPPORTED[name]
        plain = digit_version(version.partition("+")[0])
        if plain < digit_version(low) or (high is not None and plain >= digit_version(high)):
            wanted = f"≥ {low}" + (f", < {high}" if high is not None else "")
            yield Finding.error(
                name, f"{version}; mmkd requires {wanted}", f"install a supported version, {_INSTALL}"
            )
        elif plain[: len(tested.split("."))] > digit_version(tested)[: len(tested.split("."))]:
            yield Finding.warning(
                name, f"{version}; the newest version tested with mmkd is {tested}", _INSTALL
            )
    yield Finding.ok("versions", ", ".join(known))


def _version(name: str) -> str:
    if name == "python":
        return platform.python_version()
    return str(importlib.import_module(name).__version__)


def _operators(device: str) -> Finding:
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]], device=device)
    try:
        kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)[1].tolist()
    except Exception as error:
        kept = f"{type(error).__name__}: {error}"
    if kept == [0, 2]:
        return Finding.ok("mmcv's operators", f"nms runs on {device}")
    return Finding.error(
        "mmcv's operators",
        f"nms on {device} gives {kept}, expected [0, 2]",
        "build mmcv for this torch version and device (MMCV_WITH_OPS=1, FORCE_CUDA=1 for GPUs)",
    )


def _devices() -> Finding:
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding.ok("devices", f"{len(names)} GPU: {', '.join(names)}; {threads}")
    return Finding.ok("devices", f"no GPU, {threads}")


def _work_dir(folder: Path) -> Iterator[Finding]:
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield Finding.error(
            "work dir",
            f"cannot write to {folder}: {error.strerror or error}",
            "change its permissions, or choose another --work-dir",
        )
        return
    free = shutil.disk_usage(there).free / 1e9
    yield Finding.expect(
        free >= _LITTLE_DISK_GB,
        "work dir",
        f"{folder} is writable; {free:.{0 if free >= 10 else 2}f} GB free",
        "free some space, or keep fewer checkpoints (default_hooks.checkpoint.max_keep_ckpts)",
    )


def _wandb() -> Finding:
    what = "Weights & Biases"
    try:
        version = importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        return Finding.error(
            what,
            "the config uses it, but it is not installed",
            "pip install 'wandb>=0.28', or drop --wandb and its vis_backend",
        )
    if digit_version(version) < digit_version("0.28"):
        return Finding.warning(what, f"wandb {version}", "pip install 'wandb>=0.28'")
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        return Finding.ok(what, f"wandb {version}, {mode}")
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].split("/")[0]
    if os.environ.get("WANDB_API_KEY") or _in_netrc(host.split(":")[0]):
        return Finding.ok(what, f"wandb {version}, API key found for {host}")
    return Finding.warning(
        what, f"wandb {version}, no API key for {host}", "run `wandb login`, or set WANDB_MODE=offline"
    )


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
