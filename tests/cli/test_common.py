from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict

from mmkd.cli import parsers
from mmkd.cli.common import parse as parse_in_sweep
from mmkd.cli.common import prepare_data, read_config, run
from mmkd.datasets import innermost
from mmkd.errors import UserError
from mmkd.registry import DATASETS


def parse(*argv: str) -> Any:
    return parsers.base("test").parse_args(argv)


def test_work_dir() -> None:
    assert read_config(parse("configs/bccd/student.py")).work_dir == "work_dirs/student"
    assert read_config(parse("configs/bccd/student.py", "--work-dir", "w")).work_dir == "w"


def test_parameters_of_wandbs_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text(
        "lr: {value: 0.5}\nmodel.backbone.norm_eval: {value: true}\nbatch_size: {value: 3}\n"
        "data_root: {value: 'two words, and more'}\n"
    )
    words = ["configs/bccd/student.py", "--lr=0.25", "--amp"]
    with pytest.raises(SystemExit):
        parse_in_sweep(parsers.base("test"), words)

    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(file))
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    with pytest.raises(SystemExit):  # neither a value nor one of the parameters
        parse_in_sweep(parsers.base("test"), words)
    args = parse_in_sweep(parsers.base("test"), ["configs/bccd/student.py", "--lr=0.25"])
    cfg = read_config(args)
    assert cfg.optim_wrapper.optimizer.lr == 0.25, "what the command says counts"
    assert cfg.train_dataloader.batch_size == 3, "what it leaves out is in the agent's file"
    assert cfg.data_root == "two words, and more"
    assert cfg.model.backbone.norm_eval is True
    assert cfg.work_dir == "work_dirs/student/r"
    given = parse_in_sweep(parsers.base("test"), ["configs/bccd/student.py", "--work-dir", "w"])
    assert read_config(given).work_dir == "w/r", "the runs of a sweep share the command"


def test_boolean_flags_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text("model.backbone.norm_eval: {value: true}")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(file))
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    args = parse_in_sweep(parsers.base("test"), ["configs/bccd/student.py", "--model.backbone.norm_eval"])
    assert read_config(args).model.backbone.norm_eval is True


def test_package_names_work() -> None:
    assert read_config(parse("mmdet::atss/atss_r50_fpn_1x_coco.py")).model.type == "ATSS"


@pytest.mark.parametrize("content", [None, "model = ", "_base_ = ['./nowhere.py']"])
def test_unreadable_config(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "c.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="Cannot read config.*\n.*\n.*c.py"):
        read_config(parse(str(path)))


def config(**dataset: Any) -> Config:
    cfg = Config.fromfile("configs/bccd/student.py")
    cfg.train_dataloader.dataset.update(dataset)
    return cfg


def test_fraction_becomes_a_subset_below_wrappers_too() -> None:
    cfg = config(indices=0.25)
    cfg.train_dataloader.dataset = {
        "type": "RepeatDataset",
        "times": 2,
        "dataset": cfg.train_dataloader.dataset,
    }
    prepare_data(cfg, ["train_dataloader", "val_dataloader", "absent_dataloader"])
    inner = cfg.train_dataloader.dataset.dataset
    assert inner.type == "FractionOfDataset"
    assert inner.fraction == 0.25
    assert "indices" not in inner.dataset

    several = config()
    several.train_dataloader.dataset = {
        "type": "ConcatDataset",
        "datasets": [config(indices=0.5).train_dataloader.dataset, config().train_dataloader.dataset],
    }
    prepare_data(several, ["train_dataloader"])
    assert [d.type for d in several.train_dataloader.dataset.datasets] == ["FractionOfDataset", "CocoDataset"]


@pytest.mark.parametrize("indices", [0.25, 10])
def test_indices_of_a_wrapper_are_those_of_its_parts(indices: float) -> None:
    cfg = config()
    part = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = ConfigDict(
        type="RepeatDataset",
        times=2,
        indices=indices,
        dataset={"type": "ConcatDataset", "datasets": [part, part]},
    )
    prepare_data(cfg, ["train_dataloader"])
    outer = cfg.train_dataloader.dataset
    assert "indices" not in outer
    for one in outer.dataset.datasets:
        assert (one.fraction if isinstance(indices, float) else one.indices) == indices
    assert len(DATASETS.build(outer)) == 4 * (73 if isinstance(indices, float) else 10)


def test_indices_of_the_outermost_wrapper_count() -> None:
    cfg = config()
    part = cfg.train_dataloader.dataset
    inner = {"type": "RepeatDataset", "times": 1, "indices": 9, "dataset": ConfigDict({**part, "indices": 8})}
    parts = [inner, ConfigDict({**part, "indices": 7})]
    cfg.train_dataloader.dataset = ConfigDict(type="ConcatDataset", datasets=parts)
    prepare_data(cfg, ["train_dataloader"])
    assert [one["indices"] for one in innermost(cfg.train_dataloader.dataset)] == [9, 7]
    cfg.train_dataloader.dataset.indices = [3, 5]
    prepare_data(cfg, ["train_dataloader"])
    assert [one["indices"] for one in innermost(cfg.train_dataloader.dataset)] == [[3, 5], [3, 5]]


@pytest.mark.parametrize("indices", [0, True, "few", [], ["a"], {}])
def test_indices_of_another_kind(indices: Any) -> None:
    with pytest.raises(UserError, match="Invalid train_dataloader.dataset.indices"):
        prepare_data(config(indices=indices), ["train_dataloader"])


def test_whole_numbers_are_left_to_mmengine() -> None:
    cfg = config(indices=10)
    prepare_data(cfg, ["train_dataloader"])
    assert cfg.train_dataloader.dataset.indices == 10


def test_fraction_of_the_validation_data_is_refused() -> None:
    cfg = config()
    cfg.val_dataloader.dataset.indices = 0.5
    with pytest.raises(UserError, match="full annotation file"):
        prepare_data(cfg, ["val_dataloader"])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"data_root": "nowhere/"}, "not found.*\n.*nowhere/annotations/train.json.*\n.*no folder nowhere/"),
        ({"ann_file": "annotations/none.json"}, "none.json.*\n.*no such file"),
    ],
)
def test_missing_data(dataset: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_data(config(**dataset), ["train_dataloader"])


def test_remote_data_is_not_looked_for() -> None:
    prepare_data(config(data_root="s3://bucket/"), ["train_dataloader"])


def fail(error: BaseException) -> Any:
    def main() -> None:
        raise error

    return main


def test_last_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: None) == 0
    assert run(fail(UserError("do this"))) == 2
    assert capsys.readouterr().err == "\nmmkd: error: do this\n"
    assert run(fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "\nmmkd: interrupted\n"
    assert run(fail(KeyboardInterrupt("--resume goes on from epoch_3.pth"))) == 130
    assert capsys.readouterr().err == "\nmmkd: interrupted; --resume goes on from epoch_3.pth\n"
    assert run(fail(RuntimeError("odd"))) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith(
        "\nmmkd: error: RuntimeError: odd\n  in mmkd.cli.common.run\n  (the traceback is above)\n"
    )


def test_no_process_group_outlives_the_tool(tmp_path: Path) -> None:
    """A Runner holds the group in reference cycles; gloo's threads must end before Python does."""
    groups = []

    def main() -> None:
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        group = torch.distributed.group.WORLD
        assert group is not None
        cycle: list[Any] = [group]
        cycle.append(cycle)
        groups.append(weakref.ref(group))

    assert run(main) == 0
    assert not torch.distributed.is_initialized()
    assert groups[0]() is None
