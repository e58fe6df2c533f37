from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mmkd.checkpoints.names import hash_in_name, sha256, verify
from mmkd.errors import UserError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("atss_r50_fpn_1x_coco_20200209-985f7bd0.pth", "985f7bd0"),
        ("resnet50-0676ba61.pth", "0676ba61"),
        ("model-985f7bd0.pth.tar", "985f7bd0"),
        ("a-985f7bd0-20200209.pth", None),
        ("atss_r50-20200209.pth", None),
        ("iter-00090000.pth", None),
        ("atss-985F7BD0.pth", None),
        ("atss-985f7bd.pth", None),
        ("atss-985f7bd01.pth", None),
        ("atss_985f7bd0.pth", None),
        ("atss-985f7bd0", None),
        ("985f7bd0.pth", None),
        ("model-550e8400-e29b-41d4-a716-446655440000.pth", None),
        ("best_coco_bbox_mAP_epoch_12.pth", None),
    ],
)
def test_what_counts_as_a_hash(name: str, expected: str | None) -> None:
    assert hash_in_name(name) == expected


def test_a_file_is_compared_with_its_name(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    digest = hashlib.sha256(content).hexdigest()
    # A digest of decimal digits alone would not be looked at.
    path = tmp_path / f"model-{digest[:8]}.pth"
    assert not digest[:8].isdecimal()
    path.write_bytes(content)
    assert sha256(path) == digest
    verify(path)
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"starting with {digest[:8]}\n.*2303999 bytes\n.*truncated.*rename"):
        verify(path)
    (tmp_path / "model-20200209.pth").write_bytes(b"x")
    verify(tmp_path / "model-20200209.pth")


def test_the_name_may_be_another_than_the_file_has_now(tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(b"x")
    verify(tmp_path / "x.part")
    with pytest.raises(UserError, match="model-985f7bd0.pth does not match the hash"):
        verify(tmp_path / "x.part", "model-985f7bd0.pth")
