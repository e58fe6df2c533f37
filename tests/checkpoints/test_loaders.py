from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint

from mmkd.checkpoints import loaders
from mmkd.checkpoints.names import sha256
from mmkd.deployment import write_deployable
from mmkd.errors import UserError
from mmkd.teachers.checkpoint import load_strictly
from mmkd.teachers.store import EntryStore

from ..hooks.toy import ToyModel, toy_runner
from .hostile import FORMATS, Touches, write_pickle
from .server import FileServer, content


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a checkpoint whose name carries its hash."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.save({"state_dict": {"backbone.w": torch.ones(1), "head.w": torch.ones(1)}}, tmp_path / "c.pth")
    with FileServer() as server:
        path = f"/c-{sha256(tmp_path / 'c.pth')[:8]}.pth"
        server.answers[path] = content((tmp_path / "c.pth").read_bytes())
        yield server.url + path


def load_by_runner(path: Path, **options: Any) -> None:
    runner = toy_runner(path.parent, load_from=str(path), **options)
    runner.load_or_resume()


ENTRIES: dict[str, Callable[[Path], Any]] = {
    "teacher": lambda path: load_strictly(ToyModel(), str(path)),
    "load_from": load_by_runner,
    "resume": lambda path: load_by_runner(path, resume=True),
    "load_checkpoint": lambda path: load_checkpoint(ToyModel(), str(path)),
    "init_cfg": lambda path: BaseModule({"type": "Pretrained", "checkpoint": str(path)}).init_weights(),
    "publish": lambda path: write_deployable(str(path), path.with_name("out.pth"), half=False),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_code_is_not_run_wherever_a_checkpoint_is_named(tmp_path: Path, entry: str, kind: str) -> None:
    canary = tmp_path / "canary"
    state = ToyModel().state_dict()
    FORMATS[kind](tmp_path / "evil.pth", {"meta": {"x": Touches(canary)}, "state_dict": state})
    with pytest.raises(UserError, match="contains more than data"):
        ENTRIES[entry](tmp_path / "evil.pth")
    assert not canary.exists()


@pytest.mark.parametrize("entry", ENTRIES)
def test_damage_is_told_wherever_a_checkpoint_is_named(tmp_path: Path, entry: str) -> None:
    torch.save({"state_dict": ToyModel().state_dict()}, tmp_path / "c.pth")
    (tmp_path / "c.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:-200])
    with pytest.raises(UserError, match="Cannot read"):
        ENTRIES[entry](tmp_path / "c.pth")
    torch.save({"state_dict": ToyModel().state_dict()}, tmp_path / "c-985f7bd0.pth")
    with pytest.raises(UserError, match="does not match the hash in its name"):
        ENTRIES[entry](tmp_path / "c-985f7bd0.pth")


def test_a_pickle_in_the_cache_of_a_teacher_is_made_anew(tmp_path: Path) -> None:
    store = EntryStore(tmp_path, "teacher", 10**6)
    store.put("ab12", {"a": torch.ones(1)})
    write_pickle(store._path("ab12"), Touches(tmp_path / "canary"))
    assert store.get("ab12") is None
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "address", ["ftp://h/c.pth", "file:///c.pth", "pavi://c.pth", "hf://a/c.pth", "HTTP://h/c.pth"]
)
def test_other_schemes(address: str) -> None:
    with pytest.raises(UserError, match=r"Unsupported checkpoint address.*\n.*https://"):
        CheckpointLoader.load_checkpoint(address)


def test_http(served: str) -> None:
    found = CheckpointLoader.load_checkpoint(served, map_location="cpu")
    assert found["state_dict"].keys() == {"backbone.w", "head.w"}


@pytest.mark.parametrize(
    ("scheme", "lookup", "keys"),
    [
        ("torchvision", "get_torchvision_models", {"backbone.w", "head.w"}),
        ("modelzoo", "get_torchvision_models", {"backbone.w", "head.w"}),
        ("open-mmlab", "get_external_models", {"backbone.w", "head.w"}),
        ("mmcls", "get_mmcls_models", {"w"}),
    ],
)
def test_zoos(served: str, monkeypatch: pytest.MonkeyPatch, scheme: str, lookup: str, keys: set[str]) -> None:
    assert loaders._ZOOS[scheme] is getattr(mmengine_checkpoint, lookup)
    monkeypatch.setitem(loaders._ZOOS, scheme, lambda: {"resnet50": served})
    assert CheckpointLoader.load_checkpoint(f"{scheme}://resnet50")["state_dict"].keys() == keys
    with pytest.raises(UserError, match="Unknown model name.*\n.*expected: resnet50\n.*resnet5O"):
        CheckpointLoader.load_checkpoint(f"{scheme}://resnet5O")


def test_names_of_mmengine_lead_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(loaders, "load_from_http", lambda url, map_location: asked.append(url) or {"a": 1})
    for name in (
        "open-mmlab://detectron2/resnet50_caffe",
        "openmmlab://contrib/resnet50_gn",
        "mmcls://mobilenet_v2",
    ):
        CheckpointLoader.load_checkpoint(name)
    assert len(asked) == 3
    assert all(url.startswith("https://") for url in asked)


def test_a_zoo_of_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "own.pth")
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path))
    monkeypatch.setitem(loaders._ZOOS, "open-mmlab", lambda: {"own": "own.pth"})
    assert CheckpointLoader.load_checkpoint("open-mmlab://own").keys() == {"w"}


@pytest.mark.parametrize(
    "error",
    [
        ImportError("No module named 'torchvision'"),
        RuntimeError("operator torchvision::nms does not exist"),
        OSError("libcudart.so.12: cannot open shared object file"),
    ],
)
def test_a_zoo_without_its_package(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def unfit() -> dict[str, str]:
        raise error

    def unreachable(url: str, map_location: Any) -> dict[str, Any]:
        raise UserError(f"Cannot download {url}.")

    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    monkeypatch.setitem(loaders._ZOOS, "torchvision", unfit)
    with pytest.raises(UserError, match=r"pip install torchvision==0\.28\.0 --index-url \S+/cpu, or") as told:
        CheckpointLoader.load_checkpoint("torchvision://resnet50.imagenet1k_v2")
    assert str(error) in str(told.value)

    asked: list[str] = []
    monkeypatch.setattr(loaders, "load_from_http", lambda url, map_location: asked.append(url) or {"a": 1})
    assert CheckpointLoader.load_checkpoint("torchvision://resnet50") == {"a": 1}
    assert asked == ["https://download.pytorch.org/models/resnet50-0676ba61.pth"], "as torchvision has it"
    monkeypatch.setattr(loaders, "load_from_http", unreachable)
    with pytest.raises(UserError, match=r"Cannot download \S+resnet50\.(.|\n)*torchvision==0\.28\.0"):
        CheckpointLoader.load_checkpoint("torchvision://resnet50")


@pytest.mark.parametrize(
    "address", ["s3://bucket/c.pth", "petrel://bucket/c.pth", "cluster:s3://bucket/c.pth"]
)
def test_object_stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match="Cannot download"):
        CheckpointLoader.load_checkpoint(address)

    class Store:
        def get(self, name: str) -> memoryview:
            return memoryview((tmp_path / "c.pth").read_bytes())

    monkeypatch.setattr(loaders, "get_file_backend", lambda name, backend_args: Store())
    torch.save({"w": torch.ones(1)}, tmp_path / "c.pth")
    assert CheckpointLoader.load_checkpoint(address).keys() == {"w"}
    FORMATS["legacy"](tmp_path / "c.pth", Touches(tmp_path / "canary"))
    with pytest.raises(UserError, match="Refusing to load"):
        CheckpointLoader.load_checkpoint(address)
    assert not (tmp_path / "canary").exists()
