from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from mmengine.config import Config

from mmkd.deployment import WRITTEN, write_deployable
from mmkd.errors import UserError

from .conftest import build, distilled, tiny_atss, tiny_teacher
from .test_student_config import TEST_DATA, training


def test_weights_and_classes_alone(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2), "steps": torch.tensor(3)}
    content = {
        "meta": {"dataset_meta": {"classes": ("x",)}, "cfg": "…"},
        "state_dict": weights,
        "optimizer": {},
    }
    torch.save(content, tmp_path / "in.pth")
    for half in (False, True):
        assert write_deployable(str(tmp_path / "in.pth"), tmp_path / "out.pth", half) == 2
        written = torch.load(tmp_path / "out.pth")
        assert written.keys() == {"meta", "state_dict"}
        assert written["meta"] == {"dataset_meta": {"classes": ("x",)}}
        assert written["state_dict"]["a"].dtype == (torch.float16 if half else torch.float32)
        assert written["state_dict"]["steps"].dtype == torch.int64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out.pth"]


def test_no_weights(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "in.pth")
    with pytest.raises(UserError, match="no `state_dict`"):
        write_deployable(str(tmp_path / "in.pth"), tmp_path / "out.pth", half=False)


def test_a_name_that_promises_a_hash(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "meta": None}, tmp_path / "in.pth")
    with pytest.raises(UserError, match="student-985f7bd0.pth implies"):
        write_deployable(str(tmp_path / "in.pth"), tmp_path / "student-985f7bd0.pth", half=False)
    assert write_deployable(str(tmp_path / "in.pth"), tmp_path / "student.pth", half=False) == 1


def saved(path: Path, cfg: str, **meta: Any) -> str:
    """A checkpoint of the tiny student with this text as config."""
    torch.save({"meta": {"cfg": cfg, **meta}, "state_dict": build(tiny_atss()).state_dict()}, path)
    return str(path)


def test_types_as_classes_get_their_names(tmp_path: Path) -> None:
    """A pure-Python config, and the text that mmengine makes of it for its checkpoints."""
    source = f"""
        from mmcv.ops import nms
        from mmcv.transforms import LoadImageFromFile
        from mmdet.datasets import CocoDataset
        from mmdet.datasets.transforms import PackDetInputs
        from mmdet.models import ATSSHead, DetDataPreprocessor
        from mmkd.detectors import KDSingleStageDetector
        from torch.nn import BatchNorm2d

        default_scope = None
        model = dict({dict(distilled(tiny_atss(), tiny_teacher()))!r})
        model.update(type=KDSingleStageDetector)
        model["bbox_head"].update(type=ATSSHead)
        model["test_cfg"]["nms"].update(type=nms)
        model["backbone"].update(norm_cfg=dict(type=BatchNorm2d, requires_grad=True))
        test_dataloader = dict({TEST_DATA!r})
        test_dataloader["dataset"].update(
            type=CocoDataset, pipeline=[dict(type=LoadImageFromFile), dict(type=PackDetInputs)]
        )
    """
    (tmp_path / "pure.py").write_text(dedent(source))
    cfg = Config.fromfile(tmp_path / "pure.py")
    assert "mmkd.detectors.KDSingleStageDetector" in cfg.pretty_text
    checkpoint = saved(tmp_path / "in.pth", cfg.pretty_text)
    write_deployable(checkpoint, tmp_path / "of_text.pth", half=False)
    write_deployable(checkpoint, tmp_path / "of_file.pth", half=False, config=str(tmp_path / "pure.py"))
    text = (tmp_path / "of_text.py").read_text()
    assert text == (tmp_path / "of_file.py").read_text()
    written = Config.fromfile(tmp_path / "of_text.py")
    assert written.default_scope == "mmdet"
    assert written.model.bbox_head.type == "ATSSHead"
    assert written.model.test_cfg.nms.type == "nms", "which mmcv looks up by this name"
    assert written.test_dataloader == TEST_DATA


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret paths",
        "model = __import__('os').getcwd()",
        "model = dict(type='ATSS', **dict())",
        "import os",
        "model = dict(type='NoSuchDetector')",
        "model = dict(type='mmrazor.SingleTeacherDistill')",
    ],
)
def test_a_checkpoint_of_which_no_config_can_be_made(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its text is data, and is not run. The weights are written, and no config of others stays there."""
    (tmp_path / "out.py").write_text(f"{WRITTEN}\n")
    checkpoint = saved(tmp_path / "in.pth", text)
    assert write_deployable(checkpoint, tmp_path / "out.pth", half=False) > 0
    assert not (tmp_path / "out.py").exists()
    assert "written without a config" in "".join(capsys.readouterr())


def test_a_config_by_its_name_has_to_fit(tmp_path: Path) -> None:
    checkpoint, out = saved(tmp_path / "in.pth", ""), tmp_path / "out.pth"
    wider = Config(training(model=tiny_teacher()))
    wider.dump(tmp_path / "wider.py")
    for name, error in (("wider.py", "does not fit"), ("missing.py", "Cannot read")):
        with pytest.raises(UserError, match=error):
            write_deployable(checkpoint, out, half=False, config=str(tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "wider.py"]


def test_a_config_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "in.pth", Config(training()).pretty_text)
    for _ in range(2):
        write_deployable(checkpoint, tmp_path / "student.pth", half=False)
        assert (tmp_path / "student.py").read_text().startswith(WRITTEN)
    (tmp_path / "student.py").write_text("model = dict()")
    with pytest.raises(UserError, match="The output config would overwrite"):
        write_deployable(checkpoint, tmp_path / "student.pth", half=False)
    with pytest.raises(UserError, match="call the weights"):
        write_deployable(checkpoint, tmp_path / "other.py", half=False)
