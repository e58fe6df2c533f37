from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.structures import DenseOutputs
from mmkd.teachers import CachedTeacher, build_teacher

from ..conftest import batch, build, save_teacher, tiny_atss, tiny_teacher

NEEDS: frozenset[Any] = frozenset({"cls_logits", "bbox_pred", "extra", "feats"})
LOGITS: frozenset[Any] = frozenset({"cls_logits"})


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return save_teacher(tmp_path / "teacher.pth", tiny_teacher())


def make(
    checkpoint: str, folder: Path, needs: frozenset[Any] = NEEDS, precision: str = "fp32", **cache: Any
) -> CachedTeacher:
    entry = {"config": tiny_teacher(), "checkpoint": checkpoint, "precision": precision}
    entry["cache"] = {"dir": str(folder / "cache"), **cache}
    student = tiny_atss()
    student.data_preprocessor.pad_size_divisor = 32
    teacher = build_teacher(entry, needs, build(student))
    assert isinstance(teacher, CachedTeacher)
    teacher.for_pipeline("LoadImageFromFile()")
    return teacher


def view(folder: Path, *shapes: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, list[Any]]:
    """Padded inputs, and samples whose images are files."""
    samples = batch(*shapes)["data_samples"]
    height, width = (-(-max(sides) // 32) * 32 for sides in zip(*shapes))
    inputs = torch.zeros(len(shapes), 3, height, width)
    torch.manual_seed(seed)
    for i, (sample, shape) in enumerate(zip(samples, shapes)):
        path = folder / f"{seed}_{i}.jpg"
        path.touch()
        sample.set_metainfo({"img_path": str(path), "flip": False, "flip_direction": None})
        inputs[i, :, : shape[0], : shape[1]] = torch.randn(3, *shape)
    return inputs, samples


def alike(ours: DenseOutputs, theirs: DenseOutputs, tolerance: float = 0) -> bool:
    return all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance)
        for a, b in zip(ours.levels(), theirs.levels(), strict=True)
    )


def test_images_of_one_size_are_as_the_live_teacher_says(checkpoint: str, tmp_path: Path) -> None:
    teacher = make(checkpoint, tmp_path, dtype="fp32")
    inputs, samples = view(tmp_path, (96, 128), (96, 128))
    live = teacher.inner.ask(inputs, samples)()
    assert alike(teacher(inputs, samples), live)
    assert (teacher.read, teacher.computed) == (0, 2)

    teacher.inner = None  # type: ignore[assignment]
    other = make(checkpoint, tmp_path, dtype="fp32")
    other.inner.model.extract_feat = None  # asking it would fail
    assert alike(other.ask(inputs, samples)(), live)
    assert (other.read, other.computed) == (2, 0)
    assert "2 of 2 outputs read" in other.summary()


def test_half_precision_by_default_and_the_same_from_the_first_time_on(
    checkpoint: str, tmp_path: Path
) -> None:
    teacher = make(checkpoint, tmp_path)
    inputs, samples = view(tmp_path, (96, 128), (96, 128))
    first, second = teacher(inputs, samples), teacher(inputs, samples)
    assert alike(first, second)
    assert alike(first, teacher.inner.ask(inputs, samples)(), 2e-3)
    assert {level.dtype for level in first.levels()} == {torch.float32}
    assert not any(level.requires_grad or level.is_inference() for level in first.levels())


@pytest.mark.parametrize("shapes", [((96, 128), (96, 128)), ((90, 128), (60, 64))])
@pytest.mark.parametrize("top", [None, 5])
def test_autocast_of_the_student_does_not_reach_it(
    checkpoint: str, tmp_path: Path, shapes: tuple[tuple[int, int], ...], top: int | None
) -> None:
    teacher = make(checkpoint, tmp_path, NEEDS | {"boxes"}, top=top)
    inputs, samples = view(tmp_path, *shapes)
    for _ in range(2):  # computed, then read
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = teacher.ask(inputs, samples)()
        assert alike(found, make(checkpoint, tmp_path / "other", NEEDS | {"boxes"}, top=top)(inputs, samples))
        assert {level.dtype for level in found.levels()} == {torch.float32}
    assert (teacher.read, teacher.computed) == (2, 2)


def test_an_answer_does_not_depend_on_the_rest_of_the_batch(checkpoint: str, tmp_path: Path) -> None:
    teacher = make(checkpoint, tmp_path, dtype="fp32")
    inputs, samples = view(tmp_path, (90, 128), (60, 64))
    together = teacher(inputs, samples)
    alone = make(checkpoint, tmp_path / "other", dtype="fp32")
    small = alone(inputs[1:, :, :64, :64], samples[1:])
    assert together.cls_logits is not None
    assert small.cls_logits is not None
    assert together.cls_logits[0].shape == (2, 3, 12, 16)
    torch.testing.assert_close(together.cls_logits[0][1:, :, :8, :8], small.cls_logits[0])
    assert not together.cls_logits[0][1, :, 8:].any()
    assert alike(teacher(inputs, samples), together)


@pytest.mark.parametrize("change", ["flip", "size", "scale", "id", "image"])
def test_what_is_another_question(checkpoint: str, tmp_path: Path, change: str) -> None:
    teacher = make(checkpoint, tmp_path, LOGITS)
    inputs, samples = view(tmp_path, (96, 128))
    teacher(inputs, samples)
    meta: dict[str, Any] = {
        "flip": {"flip": True, "flip_direction": "horizontal"},
        "size": {"img_shape": (96, 127)},
        "scale": {"scale_factor": (0.5, 0.5)},
        "id": {"img_id": 77},
        "image": {},
    }[change]
    samples[0].set_metainfo(meta)
    if change == "image":
        Path(samples[0].img_path).write_bytes(b"another image")
    teacher(inputs, samples)
    assert (teacher.read, teacher.computed) == (0, 2)


def test_another_teacher_or_pipeline_is_another_folder(checkpoint: str, tmp_path: Path) -> None:
    inputs, samples = view(tmp_path, (96, 128))

    def folder(teacher: CachedTeacher) -> Path:
        teacher(inputs, samples)
        assert teacher.computed, "asked anew"
        assert teacher.store is not None
        return teacher.store.folder

    teacher = make(checkpoint, tmp_path, LOGITS)
    folders = [folder(teacher)]
    teacher.for_pipeline("LoadImageFromFile() → RandomFlip()")
    teacher.computed = 0
    folders.append(folder(teacher))
    other = save_teacher(tmp_path / "other.pth", tiny_teacher(), seed=9)
    folders.append(folder(make(other, tmp_path, LOGITS)))
    folders.append(folder(make(checkpoint, tmp_path, NEEDS)))
    folders.append(folder(make(checkpoint, tmp_path, LOGITS, precision="bf16")))
    folders.append(folder(make(checkpoint, tmp_path, LOGITS, top=10)))
    folders.append(folder(make(checkpoint, tmp_path, LOGITS, dtype="fp32")))
    assert len(set(folders)) == 7
    about = folders[0] / "about.json"
    assert checkpoint in about.read_text()

    again = make(checkpoint, tmp_path, LOGITS)
    again(inputs, samples)
    assert not again.computed


def test_the_surest_priors(checkpoint: str, tmp_path: Path) -> None:
    teacher = make(checkpoint, tmp_path, LOGITS, top=20, dtype="fp32")
    inputs, samples = view(tmp_path, (96, 128), (96, 128))
    outputs, live = teacher(inputs, samples), teacher.inner.ask(inputs, samples)()
    assert outputs.known_N is not None
    assert int(outputs.known_N.sum()) == 40
    known = outputs.known_N
    assert torch.equal(outputs.flat_cls_logits()[known], live.flat_cls_logits()[known])


def test_a_full_cache_asks_the_teacher_each_time(checkpoint: str, tmp_path: Path) -> None:
    teacher = make(checkpoint, tmp_path, LOGITS, max_gb=1e-9, dtype="fp32")
    inputs, samples = view(tmp_path, (96, 128))
    for turn in range(2):
        outputs = teacher(inputs, samples)
        assert teacher.computed == turn + 1
        wanted = teacher.inner.ask(inputs, samples)()
        assert torch.equal(outputs.flat_cls_logits(), wanted.flat_cls_logits())


def test_a_pipeline_that_nobody_has_checked(checkpoint: str, tmp_path: Path) -> None:
    teacher = make(checkpoint, tmp_path)
    teacher._recipe = None
    with pytest.raises(UserError, match="TeacherCacheHook"):
        teacher(*view(tmp_path, (96, 128)))


def test_a_sample_without_its_image(checkpoint: str, tmp_path: Path) -> None:
    teacher = make(checkpoint, tmp_path)
    inputs, samples = view(tmp_path, (96, 128))
    samples[0].set_metainfo({"img_path": None})
    with pytest.raises(UserError, match="img_path"):
        teacher(inputs, samples)


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({"max_gb": 0}, "max_gb must be"),
        ({"top": 0}, "top must be"),
        ({"top": 1.5}, "top must be"),
        ({"dtype": "bf16"}, "dtype must be one of fp16, fp32"),
        ({"size": 3}, "teacher.cache"),
    ],
)
def test_wrong_options(checkpoint: str, tmp_path: Path, cache: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(checkpoint, tmp_path, **cache)


def test_top_needs_scores_and_whole_batches_must_stay(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no loss reads class scores"):
        make(checkpoint, tmp_path, frozenset({"bbox_pred"}), top=5)
    make(checkpoint, tmp_path, frozenset({"feats"}), top=5)
    student = build(tiny_atss())
    student.data_preprocessor.batch_augments = [object()]
    entry = {"config": tiny_teacher(), "checkpoint": checkpoint, "cache": {}}
    with pytest.raises(UserError, match="batch_augments"):
        build_teacher(entry, LOGITS, student)
    with pytest.raises(UserError, match="cache must be a dict"):
        build_teacher({**entry, "cache": True}, LOGITS, student)


def test_it_stays_outside_of_the_student(checkpoint: str, tmp_path: Path) -> None:
    teacher = make(checkpoint, tmp_path)
    assert copy.deepcopy(teacher) is teacher
    assert teacher.class_names is None
    assert teacher.spec.num_classes == 3
    teacher.apply_(lambda tensor: tensor.to("meta"))
    teacher(*view(tmp_path, (96, 128)))
