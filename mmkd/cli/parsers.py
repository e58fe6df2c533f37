"""The options of the tools. Nothing here imports torch or MMDetection, so that ``--help`` takes no time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmkd.version import __version__


class _Overrides(argparse.Action):
    """mmengine's ``key=value`` options, imported when there are some."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        from mmkd.sweeps.overrides import KeepingDictAction

        KeepingDictAction(self.option_strings, self.dest, nargs=self.nargs)(
            parser, namespace, values, option_string
        )


# Of `mmkd.project.dataset`, `mmkd.compare.plan` and `mmkd.cli.convert`; a test compares them.
FORMATS = ("coco", "yolo", "voc")
SPLITS = ("test", "val")
PARTS = ("student", "teacher")


def _plain(description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"mmkd {__version__}")
    return parser


def config(description: str) -> argparse.ArgumentParser:
    """A config and its overrides."""
    parser = _plain(description)
    parser.add_argument("config", help="config file, or a name like mmdet::atss/atss_r50_fpn_1x_coco.py")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Overrides,
        help="override settings of the config: key=value …; lists as key=a,b or key='[a,b]'",
    )
    parser.set_defaults(work_dir=None, launcher="none", local_rank=0)
    return parser


def base(description: str) -> argparse.ArgumentParser:
    """The options that mmdet's train and test tools share."""
    parser = config(description)
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/<config>)")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    # Set by torch.distributed.launch.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def init() -> argparse.ArgumentParser:
    """A project's folder, its data, and the two detectors."""
    parser = _plain(
        "Make a project for a data set: look at the data, and write configs of teacher, student and "
        "distillation, a comparison, a sweep and the commands to call."
    )
    parser.add_argument("project", type=Path, help="folder to write; new or empty")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="a COCO, YOLO or VOC data set, or the data.yaml of YOLO labels",
    )
    pair = "(default: ATSS, small where there is no GPU)"
    parser.add_argument("--student", metavar="CONFIG", help=f"a config like mmdet::…, or a file {pair}")
    parser.add_argument("--teacher", metavar="CONFIG", help=f"likewise {pair}")
    parser.add_argument("--format", choices=FORMATS, help="of the data, where a folder holds several")
    return parser


def train() -> argparse.ArgumentParser:
    """mmdet's options for training, and a teacher for any config."""
    parser = base("Train a detector, alone or with a teacher.")
    parser.add_argument("--amp", action="store_true", help="train with automatic mixed precision")
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="go on from the last checkpoint in the work dir, or from the one named",
    )
    parser.add_argument(
        "--wandb", action="store_true", help="log to Weights & Biases (in its sweeps, always)"
    )
    parser.add_argument(
        "--teacher",
        metavar="CONFIG",
        help="distil from this teacher, by what fits both",
    )
    parser.add_argument("--teacher-checkpoint", metavar="FILE", help="the weights of --teacher")
    return parser


def test() -> argparse.ArgumentParser:
    """mmdet's options for testing, and ``--teacher``."""
    parser = base("Evaluate a checkpoint. A distilled config is evaluated as its plain student.")
    parser.add_argument("checkpoint", nargs="?", help="the checkpoint to evaluate (not with --teacher)")
    parser.add_argument("--teacher", action="store_true", help="evaluate the teacher that the config names")
    parser.add_argument("--out", help="write the predictions to this .pkl file")
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument("--show-dir", help="save pictures of the predictions below the work dir")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds per picture with --show")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    return parser


def cache_teacher() -> argparse.ArgumentParser:
    """A distilled config, and how to go through its images."""
    parser = config(
        "Ask the teacher about each training image, in each size and flip that the pipeline may give it."
    )
    parser.add_argument("--batch-size", type=int, help="images at a time (default: as in training)")
    parser.add_argument("--workers", type=int, help="processes that load images (default: as in training)")
    return parser


def predict() -> argparse.ArgumentParser:
    """A detector, images, and where its predictions go."""
    parser = config(
        "Write the boxes that a detector finds, for teacher=dict(predictions=…). Called again after an "
        "interruption, it goes on with the images that are left."
    )
    parser.add_argument("checkpoint", help="of the detector; of a distilled config, of its student")
    parser.add_argument(
        "--data",
        help="a folder of images, a .txt list, or a COCO file (default: the training set of the config)",
    )
    parser.add_argument("--images", metavar="DIR", help="where the names in --data begin")
    parser.add_argument(
        "--out", required=True, type=Path, help="a file ending in .json, or for large sets a folder of files"
    )
    parser.add_argument("--min-score", type=float, default=0.05, help="leave out boxes below (default: 0.05)")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    parser.add_argument("--batch-size", type=int, help="images at a time (default: as in testing)")
    parser.add_argument("--workers", type=int, help="processes that load images (default: as in testing)")
    parser.add_argument(
        "--every",
        type=int,
        default=1000,
        metavar="N",
        help="images in each file of the folder; a kill loses at most this many (default: 1000)",
    )
    return parser


def sweep() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = _plain(
        "Search over the options of a config, from a W&B sweep file: hosted by W&B, or on this machine alone."
    )
    parser.add_argument("sweep", type=Path, help="a sweep file, as `wandb sweep` takes it")
    parser.add_argument("--count", type=int, required=True, help="number of trials")
    hosted = parser.add_argument_group("hosted by W&B")
    hosted.add_argument("--project", help="W&B project (default: the sweep file's, or WANDB_PROJECT)")
    hosted.add_argument("--entity", help="W&B user or team")
    hosted.add_argument("--sweep-id", help="join this sweep, made before from the same file")
    local = parser.add_argument_group("on this machine")
    local.add_argument("--local", action="store_true", help="run the sweep here, without an account")
    local.add_argument("--work-dir", type=Path, help="default: work_dirs/sweep_<file>")
    local.add_argument("--resume", action="store_true", help="go on with the sweep in the work dir")
    local.add_argument("--jobs", type=int, default=1, help="trials at once")
    local.add_argument("--seed", type=int, help="of the suggestions")
    return parser


def compare() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = _plain(
        "Teacher, student alone and distilled students with the same budget over several seeds, as one page.",
        epilog="What is finished is kept: after an interruption, call it again.",
    )
    parser.add_argument(
        "plan", nargs="+", help="a plan file (.yaml), or configs: the student's, then distilled ones"
    )
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/<name of the plan>")
    parser.add_argument("--rerun", nargs="+", default=[], metavar="NAME", help="make these runs anew")
    parser.add_argument("--report-only", action="store_true", help="train nothing, report what is finished")
    parser.add_argument(
        "--probe", action="store_true", help="train a part of the budget only, and say whether it will pay"
    )
    parser.add_argument("--share", type=float, help="of the budget for --probe (default: 0.1)")
    configs = parser.add_argument_group("in place of a plan file")
    configs.add_argument("--name", help="of the comparison (default: of its variants)")
    configs.add_argument("--dataset", help="what the report calls the data")
    configs.add_argument("--seeds", nargs="+", type=int, help="default: 0")
    configs.add_argument("--teacher", metavar="CONFIG", help="default: that of the first distilled config")
    configs.add_argument("--teacher-checkpoint", metavar="FILE", help="without it, --teacher is trained")
    configs.add_argument("--evaluate", choices=SPLITS, help="what the figures come from (default: test)")
    configs.add_argument("--cfg-options", nargs="+", action=_Overrides, help="for every run")
    return parser


def doctor() -> argparse.ArgumentParser:
    """The options of training that change what is trained, and how much to look at."""
    parser = base(
        "Examine environment, data, teacher, one training step and memory; say what to mend. "
        "Exit code: 0 without errors, 1 with, 2 if the config cannot be read."
    )
    parser.add_argument("--amp", action="store_true", help="as it will be trained")
    parser.add_argument("--wandb", action="store_true", help="as it will be trained")
    parser.add_argument("--teacher", metavar="CONFIG", help="distil this config from that of a teacher")
    parser.add_argument("--teacher-checkpoint", metavar="FILE", help="the weights of --teacher")
    parser.add_argument(
        "--images", type=int, default=200, help="validation images for the teacher's AP (default: 200)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there as well")
    return parser


def publish() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = _plain(
        "Reduce a training checkpoint to what deployment needs: weights, class names, a config without mmkd."
    )
    parser.add_argument("checkpoint", help="a checkpoint of tools/train.py")
    parser.add_argument(
        "out", type=Path, help="the file to write; the student's config gets its name, ending in .py"
    )
    parser.add_argument("--config", help="the training's config (default: the one in the checkpoint)")
    parser.add_argument("--full-precision", action="store_true", help="keep float32 (default: half)")
    return parser


def convert() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = _plain(
        "Turn a checkpoint of another code base for distillation into one that MMDetection 3.x loads."
    )
    parser.add_argument("checkpoint", help="of MMRazor, FGD, MGD, CrossKD, LD or mmdet; path or URL")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument(
        "--config", required=True, help="of the network that is wanted; all of its weights must be there"
    )
    parser.add_argument("--part", choices=PARTS, default="student", help="which network (default: student)")
    return parser


def demo() -> argparse.ArgumentParser:
    """Options of the demo."""
    parser = _plain("Teacher, student alone and the same student distilled, on the embedded data.")
    parser.add_argument("--work-dir", default="work_dirs/demo", type=Path)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--cfg-options", nargs="+", default=[], help="passed on to training and testing")
    return parser
