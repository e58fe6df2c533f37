"""`PicturesHook`: detections of a test run as pictures and one GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmdet.engine.hooks import DetVisualizationHook
from mmengine.dist import is_main_process

from mmkd.errors import UserError
from mmkd.registry import HOOKS

GIF = "all.gif"


@HOOKS.register_module()
class PicturesHook(DetVisualizationHook):
    """Draws each test image with its ground truth, if it has any, and its detections side by side.

    Where `DetVisualizationHook` writes below the work dir, this one writes to the folder that it is given,
    keeps the folders of the images, and adds a GIF.

    Args:
        folder: for the pictures.
        root: folder of the images; the folders below it are kept.
        **options: those of `DetVisualizationHook`, like ``score_thr``.

    Raises:
        UserError: the folder is a file.
    """

    def __init__(self, folder: str, root: str | None = None, **options: Any) -> None:
        super().__init__(**{**options, "draw": True})
        self.folder, self.root = Path(folder), Path(root or "").resolve()
        self.written: list[Path] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                "Cannot write pictures.",
                expected="a new or existing folder",
                found=f"{folder} ({error.strerror})",
                remedy="name another one: --show-dir DIR",
            ) from error

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Sequence[Any]) -> None:
        """Draw the images of a batch."""
        for sample in outputs:
            source = Path(sample.img_path).resolve()
            below = source.relative_to(self.root) if source.is_relative_to(self.root) else source.name
            path = self.folder / below
            labelled = "gt_instances" in sample and sample.metainfo.get("labelled", True)
            self._visualizer.add_datasample(
                source.name,
                mmcv.imread(sample.img_path, channel_order="rgb"),
                sample,
                draw_gt=labelled,
                pred_score_thr=self.score_thr,
                out_file=str(path),
            )
            self.written.append(path)

    def after_test(self, runner: Any) -> None:
        """Write the GIF; of several processes the first shows its own images."""
        from mmkd.pictures import write_gif  # with matplotlib, which `import mmkd` does not need

        if self.written and is_main_process():
            write_gif(self.written, self.folder / GIF)
            runner.logger.info(f"{len(self.written)} pictures and {GIF} in {self.folder}")
