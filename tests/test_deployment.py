from __future__ import annotations

import copy
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from mmengine.config import Config

from mmkd.deployment import WRITTEN, student_config, write_deployable
from mmkd.errors import UserError
from mmkd.registry import DATASETS
from mmkd.visualization import WandbBackend

from .conftest import build, distilled, tiny_atss, tiny_teacher


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
    with pytest.raises(UserError, match="student-985f7bd0.pth promises"):
        write_deployable(str(tmp_path / "in.pth"), tmp_path / "student-985f7bd0.pth", half=False)
    assert write_deployable(str(tmp_path / "in.pth"), tmp_path / "student.pth", half=False) == 1


TEST_DATA = {
    "batch_size": 1,
    "dataset": {
        "type": "CocoDataset",
        "ann_file": "nowhere.json",
        "metainfo": {"classes": ("a", "b", "c")},
        "pipeline": [{"type": "LoadImageFromFile"}, {"type": "PackDetInputs"}],
    },
}


def training(**more: Any) -> dict[str, Any]:
    """The config of a distilled training with something of mmkd's wherever it may be."""
    return {
        "custom_imports": {"imports": ["mmkd"], "allow_failed_imports": False},
        "model": {**distilled(tiny_atss(), tiny_teacher()), "_scope_": "mmkd"},
        "test_dataloader": copy.deepcopy(TEST_DATA),
        "test_evaluator": {"type": "CocoMetric", "_scope_": "mmkd"},
        "test_cfg": {"type": "TestLoop"},
        "default_hooks": {
            "checkpoint": {"type": "DurableCheckpointHook"},
            "timer": {"type": "IterTimerHook"},
        },
        "custom_hooks": [{"type": "DistillStateHook"}, {"type": "mmdet.ProgressHook"}],
        "visualizer": {
            "type": "DetLocalVisualizer",
            "name": "visualizer",
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "WandbBackend"}],
        },
        "optim_wrapper": {"type": "BFloat16OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}},
        "train_dataloader": {"dataset": {"type": "FractionOfDataset"}},
        **more,
    }


def saved(path: Path, cfg: str, **meta: Any) -> str:
    """A checkpoint of the tiny student with this text as config."""
    torch.save({"meta": {"cfg": cfg, **meta}, "state_dict": build(tiny_atss()).state_dict()}, path)
    return str(path)


def test_the_config_is_of_stock_types_alone() -> None:
    cfg = training()
    cfg["visualizer"]["vis_backends"] += [{"type": WandbBackend}]
    written = student_config(cfg, {}).pretty_text
    assert "mmkd" not in written
    cfg = Config.fromstring(written, ".py")
    assert cfg.model.pop("type") == "SingleStageDetector"
    assert cfg.model == {key: value for key, value in tiny_atss().items() if key != "type"}
    assert cfg.test_dataloader == TEST_DATA
    assert cfg.default_hooks == {"timer": {"type": "IterTimerHook"}}
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ["LocalVisBackend"]
    assert set(cfg) & {"custom_imports", "custom_hooks", "optim_wrapper", "train_dataloader"} == set()


def test_a_student_that_was_not_distilled_stays_what_it_is() -> None:
    pretrained = {"type": "Pretrained", "checkpoint": "torchvision://resnet18"}
    cfg = training(model=tiny_atss(backbone__init_cfg=pretrained))
    pixels = cfg["model"].pop("data_preprocessor")
    model = student_config({**cfg, "data_preprocessor": pixels}, {}).model
    assert model.type == tiny_atss().type
    assert model.data_preprocessor == pixels
    assert "init_cfg" not in model.backbone


def test_types_as_classes_get_their_names(tmp_path: Path) -> None:
    """A pure-Python config, and the text that mmengine makes of it for its checkpoints."""
    source = f"""
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
    assert written.test_dataloader == TEST_DATA


def test_modules_of_the_user() -> None:
    """Imported if types of theirs are left, and not for what is of training alone."""
    imports = {"imports": ["mmkd", "mine.models"], "allow_failed_imports": False}
    own = student_config(training(custom_imports=imports), {})
    assert "custom_imports" not in own
    mine = training(custom_imports=imports, tta_model={"type": "MyTTAModel"})
    assert student_config(mine, {}).custom_imports.imports == ["mine.models"]
    assert "custom_imports" not in student_config(training(custom_imports={"imports": "mmkd"}), {})
    with pytest.raises(UserError, match=r"more than stock(.|\n)*mine\.MyTTAModel"):
        student_config(training(tta_model={"type": "mine.MyTTAModel"}), {})
    with pytest.raises(UserError, match=r"more than stock(.|\n)*ProgressHook"):
        student_config(
            training(tta_model={"type": "mmkd.hooks.ProgressHook", "deep": 1}, model=tiny_atss()), {}
        )


def test_its_data_set_is_built_without_files() -> None:
    parts = [{**TEST_DATA["dataset"], "metainfo": {"classes": "classes.txt"}} for _ in range(2)]
    joined = {"dataset": {"type": "ConcatDataset", "datasets": parts}}
    cfg = student_config(training(test_dataloader=joined), {"classes": ("a", "b", "c")})
    built = DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": True})
    assert built.metainfo["classes"] == ("a", "b", "c")


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
    for name, error in (("wider.py", "does not fit"), ("missing.py", "cannot be read")):
        with pytest.raises(UserError, match=error):
            write_deployable(checkpoint, out, half=False, config=str(tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "wider.py"]


def test_a_config_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "in.pth", Config(training()).pretty_text)
    for _ in range(2):
        write_deployable(checkpoint, tmp_path / "student.pth", half=False)
        assert (tmp_path / "student.py").read_text().startswith(WRITTEN)
    (tmp_path / "student.py").write_text("model = dict()")
    with pytest.raises(UserError, match="A config of yours has the name"):
        write_deployable(checkpoint, tmp_path / "student.pth", half=False)
    with pytest.raises(UserError, match="name the weights"):
        write_deployable(checkpoint, tmp_path / "other.py", half=False)
