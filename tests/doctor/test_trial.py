from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mmkd.doctor import trial as module
from mmkd.doctor.agreement import Agreement
from mmkd.doctor.trial import Trial, spaced

POOR = Agreement(ap=0.1, ap_best=0.1, recall=0.5, matched=20, right=0.9, order={})


class Data:
    """Of a hundred images, each fifth without objects."""

    def __init__(self) -> None:
        self.metainfo = {"classes": ("cat",)}

    def __len__(self) -> int:
        return 100

    def get_data_info(self, number: int) -> dict[str, Any]:
        return {"instances": [1] if number % 5 else []}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """How many images were asked about with which pixels; red pixels help, on few images green ones too."""
    calls: list[tuple[int, str]] = []

    def detect(setup: Any, teacher: Any, numbers: Any, *, images: Any, preprocessor: Any) -> list[str]:
        calls.append((len(numbers), preprocessor["pixels"]))
        luck = preprocessor["pixels"] == "green" and len(numbers) < 10
        return ["good" if preprocessor["pixels"] == "red" or luck else "poor"]

    def judge(found: list[str], classes: Any) -> Agreement:
        return replace(POOR, ap_best=0.6) if found == ["good"] else POOR

    monkeypatch.setattr(module, "detect", detect)
    monkeypatch.setattr(module, "judge", judge)
    monkeypatch.setattr(module, "load_images", lambda setup, numbers, way: list(numbers))
    return calls


def make() -> Trial:
    setup: Any = SimpleNamespace(dataset=lambda which: Data(), images=100)
    teacher: Any = SimpleNamespace(preprocessor={"pixels": "grey"})
    return Trial(setup, teacher)


def test_it_asks_about_images_with_objects() -> None:
    trial = make()
    assert (len(trial.few), len(trial.many)) == (8, 32)
    assert all(number % 5 for number in trial.many)


def test_a_better_way_is_confirmed_on_more_images(asked: list[tuple[int, str]]) -> None:
    trial = make()
    found = trial.best({"red": {"preprocessor": {"pixels": "red"}}})
    assert found is not None
    assert (found[0], found[1].ap_best, found[2].ap_best) == ("red", 0.1, 0.6)
    assert asked == [(8, "grey"), (8, "red"), (32, "grey"), (32, "red")]
    trial.adopt({"pixels": "red"})
    assert trial.adopted
    assert trial.ask(trial.many).ap_best == 0.6
    assert len(asked) == 4, "nothing is asked twice"


def test_luck_on_few_images_is_not_enough(asked: list[tuple[int, str]]) -> None:
    assert make().best({"green": {"preprocessor": {"pixels": "green"}}}) is None
    assert make().best({}) is None


def test_spaced() -> None:
    assert spaced(range(10), 5) == [0, 2, 4, 6, 8]
    assert spaced([3, 4], 5) == [3, 4]
    assert spaced([], 5) == []
