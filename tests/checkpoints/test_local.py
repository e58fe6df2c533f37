from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.checkpoints import local
from mmkd.checkpoints.local import TRUST, read_bytes, read_file
from mmkd.checkpoints.names import sha256
from mmkd.errors import UserError

from ..conftest import repeats
from .hostile import FORMATS, Touches, write_legacy, write_tar, write_zip
from .test_reader import checkpoint, same


@pytest.mark.parametrize("kind", FORMATS)
def test_refuses_code_without_running_it(tmp_path: Path, kind: str) -> None:
    canary = tmp_path / "canary"
    FORMATS[kind](tmp_path / "evil.pth", {"state_dict": Touches(canary)})
    with pytest.raises(UserError, match=r"evil.pth: it contains more than data[\s\S]*remedy: .*TORCH_FORCE"):
        read_file(tmp_path / "evil.pth")
    with pytest.raises(UserError, match="Refusing to load"):
        read_bytes((tmp_path / "evil.pth").read_bytes(), "s3://x/evil.pth")
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_says_which_name(tmp_path: Path, kind: str) -> None:
    FORMATS[kind](tmp_path / "evil.pth", [Touches(tmp_path / "canary")])
    allow = "add_safe_globals" if hasattr(torch.serialization, "add_safe_globals") else "trust"
    with pytest.raises(UserError, match=rf"found: .*`\w+.system`\n.*{allow}"):
        read_file(tmp_path / "evil.pth")


def test_what_cannot_be_allowed_by_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "old.pth", {})
    with pytest.raises(UserError, match="tar format of torch <") as error:
        read_file(tmp_path / "old.pth")
    assert "add_safe_globals" not in str(error.value)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("value", ["1", "TRUE", "0"])
def test_a_user_who_trusts_the_file_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, value: str
) -> None:
    write(tmp_path / "odd.pth", {"state_dict": {}, "path": Path("x")})
    monkeypatch.setenv(TRUST, value)
    if value == "0":
        with pytest.raises(UserError, match="Refusing to load"):
            read_file(tmp_path / "odd.pth")
        return
    assert read_file(tmp_path / "odd.pth")["path"] == Path("x")
    assert read_bytes((tmp_path / "odd.pth").read_bytes(), "odd")["path"] == Path("x")


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"PK\x03\x04", bytes(1024), b"\x80\x02]K\x01a", b"\x80"]
)
def test_truncated_or_foreign_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"Cannot read checkpoint \S*bad.pth.*\n.*\n.*{len(content)} bytes"):
        read_file(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "list"),
        (torch.ones(1), "Tensor"),
        ({"state_dict": [1]}, "list"),
        ({"state_dict": None}, "NoneType"),
        ({"state_dict": {1: torch.ones(1)}}, "a dict with non-string keys"),
        ({1: torch.ones(1)}, "a dict with non-string keys"),
    ],
)
def test_no_weights_by_name(tmp_path: Path, content: Any, found: str) -> None:
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(UserError, match=rf"contains no named weights.*\n.*\n.*found: *{found}"):
        read_file(tmp_path / "c.pth")


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "epoch_3.pth")
    with pytest.raises(UserError, match=r"in its folder: epoch_3\.pth"):
        read_file(tmp_path / "epoch_4.pth")
    with pytest.raises(UserError, match="no checkpoint in"):
        read_file(tmp_path / "no" / "epoch_4.pth")
    with pytest.raises(UserError, match="not found"):
        read_file(tmp_path)


def test_home_folder_and_hash_in_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save({"w": torch.ones(1)}, tmp_path / "c.pth")
    digest = sha256(tmp_path / "c.pth")[:8]
    monkeypatch.setattr(local, "verify", lambda path: verified.append(path))
    verified: list[Path] = []
    (tmp_path / "c.pth").rename(tmp_path / f"c-{digest}.pth")
    assert read_file(Path(f"~/c-{digest}.pth")).keys() == {"w"}
    assert verified == [tmp_path / f"c-{digest}.pth"]


def corrupted(data: bytes, rng: random.Random) -> bytes:
    """One of the damages that disks, networks and hands do."""
    changed = bytearray(data)
    start, length = rng.randrange(len(data)), rng.choice([1, 8, 512, 4096])
    match rng.randrange(6):
        case 0:
            return data[:start]
        case 1:
            changed[start] ^= 1 << rng.randrange(8)
        case 2:
            changed[start : start + length] = bytes(len(changed[start : start + length]))
        case 3:
            changed[start : start + length] = rng.randbytes(len(changed[start : start + length]))
        case 4:
            del changed[start : start + length]
        case 5:
            other = rng.randrange(len(data))
            moved = data[other : other + length]
            changed[start : start + len(moved)] = moved
    return bytes(changed)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["zip", "legacy", "legacy by hash"])
def test_corrupted_files_end_in_a_clear_error(tmp_path: Path, kind: str) -> None:
    path, content = tmp_path / "c.pth", checkpoint()
    (write_zip if kind == "zip" else write_legacy)(path, content)
    whole, digest = path.read_bytes(), sha256(path)[:8]
    if kind == "legacy by hash":
        digest = digest if not digest.isdecimal() else "985f7bd0"
        path = tmp_path / f"c-{digest}.pth"
    refused = 0
    for seed in range(repeats(24, 200)):
        path.write_bytes(corrupted(whole, random.Random(seed)))
        try:
            found = read_file(path)
        except UserError:
            refused += 1
        else:
            # Legacy files carry no sums of their own.
            assert kind == "legacy" or same(content, found), seed
    assert refused > repeats(24, 200) // 2
