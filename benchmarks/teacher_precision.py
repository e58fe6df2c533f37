"""The AP of the teacher that the losses see: accelerated, in float32 and in the precision of `auto`.

    python benchmarks/teacher_precision.py

The whole head is computed, the head's own code decodes its boxes, and the config's evaluator scores them on
its test data, for comparison with the stock detector.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import write
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from tqdm import tqdm

from mmkd.compat import load_config
from mmkd.registry import MODELS
from mmkd.structures import Need
from mmkd.teachers import FrozenTeacher, build_detector, teacher_model_and_checkpoint

EVERYTHING: frozenset[Need] = frozenset({"cls_logits", "bbox_pred", "extra"})


def parse_args() -> argparse.Namespace:
    """Options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="mmkd::bccd/kd.py", help="a distilled config")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


@torch.no_grad()
def average_precision(cfg: Any, student: Any, detect: Any, name: str) -> dict[str, float]:
    """COCO metrics of a function that maps inputs and samples to results per image."""
    loader = Runner.build_dataloader(cfg.test_dataloader)
    evaluator = Runner.build_evaluator(Runner, cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for data in tqdm(loader, desc=name, disable=None):
        batch = student.data_preprocessor(data)
        for sample, result in zip(batch["data_samples"], detect(batch["inputs"], batch["data_samples"])):
            sample.pred_instances = result
        evaluator.process(data_samples=batch["data_samples"], data_batch=data)
    found: dict[str, float] = evaluator.evaluate(len(loader.dataset))
    return found


def main() -> None:
    """Print the table and write the JSON."""
    args = parse_args()
    init_default_scope("mmdet")
    cfg = load_config(args.config)
    entry = cfg.model.pop("teacher")
    student = MODELS.build({**{k: v for k, v in cfg.model.items() if k != "distill"}, "type": "ATSS"})

    def accelerated(precision: str) -> Any:
        teacher = FrozenTeacher({**entry, "precision": precision}, EVERYTHING, student)

        def detect(inputs: torch.Tensor, samples: list[Any]) -> Any:
            found = teacher.ask(inputs, samples)()
            parts = [found.cls_logits, found.bbox_pred, *found.extra.values()]
            metas = [sample.metainfo for sample in samples]
            return teacher.model.bbox_head.predict_by_feat(*parts, batch_img_metas=metas, rescale=True)

        return detect

    stock, _ = build_detector(*teacher_model_and_checkpoint(entry))

    def plain(inputs: torch.Tensor, samples: list[Any]) -> Any:
        return [sample.pred_instances for sample in stock.predict(inputs, samples, rescale=True)]

    rows = {
        "stock detector": average_precision(cfg, student, plain, "stock"),
        "mmkd, precision='fp32'": average_precision(cfg, student, accelerated("fp32"), "fp32"),
        "mmkd, precision='auto'": average_precision(cfg, student, accelerated("auto"), "auto"),
    }
    shown = ["bbox_mAP", "bbox_mAP_50", "bbox_mAP_75"]
    print("\n| the teacher | mAP | AP50 | AP75 |\n|---|---|---|---|")
    for name, metrics in rows.items():
        cells = [f"{100 * metrics['coco/' + key]:.1f}" for key in shown]
        print(f"| {name} | {' | '.join(cells)} |")
    write("teacher_precision", args.out, config=args.config, rows=rows)


if __name__ == "__main__":
    main()
