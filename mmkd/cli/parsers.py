"""The options of the tools. Nothing here imports torch or MMDetection, so that ``--help`` takes no time."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmkd.version import __version__


class _Overrides(argparse.Action):
    """mmengine's ``key=value`` options; mmengine is only imported if there are any."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        from mmkd.sweeps.overrides import KeepingDictAction

        KeepingDictAction(self.option_strings, self.dest, nargs=self.nargs)(
            parser, namespace, values, option_string
        )


# Copied from `mmkd.project.dataset`, `mmkd.compare.plan` and `mmkd.cli.convert`; a test compares them.
FORMATS = ("coco", "yolo", "voc")
SPLITS = ("test", "val")
PARTS = ("student", "teacher")
PIXELS = ("rgb", "bgr")
# Reading a config needs these options, so tools without them get defaults.
_ALONE: dict[str, Any] = {"work_dir": None, "launcher": "none", "local_rank": 0}


def _within(low: float, high: float = math.inf, kind: type = int) -> Callable[[str], Any]:
    """The type of an option that is a number in a range."""

    def number(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            limits = f"from {low} to {high}" if high < math.inf else f"at least {low}"
            raise argparse.ArgumentTypeError(f"must be {limits}, found {text}")
        return value

    return number


def _named(*suffixes: str) -> Callable[[str], Path]:
    """The type of an option that is a file name with one of these suffixes."""

    def path(text: str) -> Path:
        if Path(text).suffix not in suffixes:
            told = " or ".join(suffix or "without a suffix" for suffix in suffixes)
            raise argparse.ArgumentTypeError(f"needs a name ending in {told}, found {text}")
        return Path(text)

    return path


def _plain(description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"mmkd {__version__}")
    parser.add_argument(
        "--verbose", action="store_true", help="also print what the libraries print, log and warn of"
    )
    return parser


def config(description: str) -> argparse.ArgumentParser:
    """A config and its overrides."""
    parser = _plain(description)
    parser.add_argument("config", help="config file, or a name like mmdet::atss/atss_r50_fpn_1x_coco.py")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Overrides,
        help="override config settings: key=value …; lists as key=a,b or key='[a,b]'",
    )
    parser.set_defaults(**_ALONE)
    return parser


def base(description: str) -> argparse.ArgumentParser:
    """The options that mmdet's train and test tools share."""
    parser = config(description)
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/<config>)")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    # Set by torch.distributed.launch.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def _runner(description: str) -> argparse.ArgumentParser:
    parser = base(description)
    # For the demo, which lists the files itself.
    parser.add_argument("--no-files", action="store_true", help=argparse.SUPPRESS)
    return parser


def init() -> argparse.ArgumentParser:
    """The project's folder, its data, and the two detectors."""
    parser = _plain(
        "Create a project for a data set: inspect the data and write configs for teacher, "
        "student and distillation, a comparison plan, a sweep file and the commands to run."
    )
    parser.add_argument("project", type=Path, help="output folder; new or empty")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="a COCO, YOLO or VOC data set, or the data.yaml of YOLO labels",
    )
    pair = "(default: ATSS, a small one without a GPU)"
    parser.add_argument("--student", metavar="CONFIG", help=f"a config like mmdet::…, or a file {pair}")
    parser.add_argument("--teacher", metavar="CONFIG", help=f"same {pair}")
    parser.add_argument("--format", choices=FORMATS, help="data set format, if the folder has several")
    return parser


def train() -> argparse.ArgumentParser:
    """mmdet's options for training, and options to add a teacher to any config."""
    parser = _runner("Train a detector, alone or with a teacher.")
    parser.add_argument("--amp", action="store_true", help="train with automatic mixed precision")
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="resume from the latest checkpoint in the work dir, or from the given one",
    )
    parser.add_argument(
        "--wandb", action="store_true", help="log to Weights & Biases (always on in W&B sweeps)"
    )
    parser.add_argument(
        "--teacher",
        metavar="CONFIG",
        help="distil from this teacher with losses that fit both models",
    )
    parser.add_argument("--teacher-checkpoint", metavar="FILE", help="weights of --teacher")
    return parser


def test() -> argparse.ArgumentParser:
    """mmdet's options for testing, and ``--teacher``."""
    parser = _runner("Evaluate a checkpoint. A distilled config is evaluated as its plain student.")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint to evaluate (not with --teacher)")
    parser.add_argument("--teacher", action="store_true", help="evaluate the teacher of the config")
    parser.add_argument(
        "--out", type=_named(".pkl", ".pickle"), help="write the predictions to this .pkl file"
    )
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument(
        "--show-dir",
        metavar="DIR",
        help="write pictures of the detections, beside the ground truth where there are labels, and a GIF of "
        "all to this folder",
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="with --show-dir: use these unlabelled images instead of the test data, without evaluation",
    )
    parser.add_argument("--wait-time", type=float, default=2, help="seconds per picture with --show")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    return parser


def cache_teacher() -> argparse.ArgumentParser:
    """A distilled config, and how to load its images."""
    parser = config(
        "Cache the teacher's outputs for each training image, at every size and flip that "
        "the pipeline can produce."
    )
    parser.add_argument("--batch-size", type=_within(1), help="batch size (default: as in training)")
    parser.add_argument("--workers", type=int, help="data loader workers (default: as in training)")
    return parser


def predict() -> argparse.ArgumentParser:
    """A detector, images, and where to write the predictions."""
    parser = config(
        "Write a detector's predictions to a file, for teacher=dict(predictions=…). After an "
        "interruption, rerun the same command to predict the remaining images."
    )
    parser.add_argument("checkpoint", help="detector weights; for a distilled config, the student's")
    parser.add_argument(
        "--data",
        help="a folder of images, a .txt list, or a COCO file (default: the training set of the config)",
    )
    parser.add_argument("--images", metavar="DIR", help="root folder of the file names in --data")
    parser.add_argument(
        "--out",
        required=True,
        type=_named(".json", ""),
        help="output .json file, or for large data sets an output folder",
    )
    parser.add_argument(
        "--min-score",
        type=_within(0, 1, float),
        default=0.05,
        help="drop boxes with a lower score (default: 0.05)",
    )
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    parser.add_argument("--batch-size", type=_within(1), help="batch size (default: as in testing)")
    parser.add_argument("--workers", type=int, help="data loader workers (default: as in testing)")
    parser.add_argument(
        "--every",
        type=_within(1),
        default=1000,
        metavar="N",
        help="images per file in the output folder; a crash loses at most this many (default: 1000)",
    )
    return parser


def sweep() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = _plain("Search hyperparameters of a config with a W&B sweep file, hosted by W&B or locally.")
    parser.add_argument("sweep", type=Path, help="sweep file in the format of `wandb sweep`")
    parser.add_argument("--count", type=int, required=True, help="number of trials")
    hosted = parser.add_argument_group("hosted by W&B")
    hosted.add_argument("--project", help="W&B project (default: the sweep file's, or WANDB_PROJECT)")
    hosted.add_argument("--entity", help="W&B user or team")
    hosted.add_argument("--sweep-id", help="join this existing sweep, created from the same file")
    local = parser.add_argument_group("on this machine")
    local.add_argument("--local", action="store_true", help="run the sweep locally, without an account")
    local.add_argument("--work-dir", type=Path, help="default: work_dirs/sweep_<file>")
    local.add_argument("--resume", action="store_true", help="continue the sweep in the work dir")
    local.add_argument("--jobs", type=int, default=1, help="parallel trials")
    local.add_argument("--seed", type=int, help="seed of the sampler")
    return parser


def compare() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = _plain(
        "Train and evaluate teacher, student alone and distilled students with the same "
        "budget over several seeds; report on one page.",
        epilog="Finished runs are kept: after an interruption, rerun the same command.",
    )
    parser.add_argument(
        "plan", nargs="+", help="a plan file (.yaml), or configs: first the student, then the distilled ones"
    )
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/<name of the plan>")
    parser.add_argument("--rerun", nargs="+", default=[], metavar="NAME", help="rerun these runs")
    parser.add_argument("--report-only", action="store_true", help="do not train, report finished runs")
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="also draw teacher, student and distilled student side by side on these images, with a GIF",
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="train on a fraction of the budget and predict whether distillation pays off",
    )
    parser.add_argument("--share", type=float, help="fraction of the budget for --probe (default: 0.1)")
    configs = parser.add_argument_group("instead of a plan file")
    configs.add_argument("--name", help="name of the comparison (default: its variants' names)")
    configs.add_argument("--dataset", help="data set name in the report")
    configs.add_argument("--seeds", nargs="+", type=int, help="default: 0")
    configs.add_argument("--teacher", metavar="CONFIG", help="default: the first distilled config's teacher")
    configs.add_argument(
        "--teacher-checkpoint",
        metavar="FILE",
        help="weights of --teacher; if omitted, the teacher is trained",
    )
    configs.add_argument("--evaluate", choices=SPLITS, help="split to evaluate on (default: test)")
    configs.add_argument("--cfg-options", nargs="+", action=_Overrides, help="config overrides for all runs")
    return parser


def doctor() -> argparse.ArgumentParser:
    """The training options that change what is trained, and how much to check."""
    parser = base(
        "Check environment, data, teacher, one training step and memory, and suggest fixes. "
        "Exit code: 0 no errors, 1 errors, 2 unreadable config."
    )
    parser.add_argument("--amp", action="store_true", help="check training with --amp")
    parser.add_argument("--wandb", action="store_true", help="check training with --wandb")
    parser.add_argument("--teacher", metavar="CONFIG", help="distil this config from this teacher config")
    parser.add_argument("--teacher-checkpoint", metavar="FILE", help="weights of --teacher")
    parser.add_argument(
        "--images",
        type=_within(1),
        default=200,
        help="number of validation images for the teacher's AP (default: 200)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the findings to this file")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the findings as an HTML page")
    return parser


def publish() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = _plain(
        "Export what deployment needs from a training checkpoint: weights, class names and a "
        "config without mmkd."
    )
    parser.add_argument("checkpoint", help="a checkpoint of tools/train.py")
    parser.add_argument(
        "out", type=Path, help="output file; the student's config gets the same name with suffix .py"
    )
    parser.add_argument("--config", help="training config (default: the one in the checkpoint)")
    parser.add_argument("--full-precision", action="store_true", help="keep float32 (default: half)")
    return parser


def export() -> argparse.ArgumentParser:
    """A checkpoint, the file to write, and its precision."""
    parser = _plain("Write a student as one ONNX file: pixels in, boxes after NMS out.")
    parser.add_argument("checkpoint", help="a checkpoint of training or of mmkd-publish")
    parser.add_argument(
        "--onnx",
        type=Path,
        nargs="?",
        metavar="FILE",
        help="the file to write (default: beside the checkpoint)",
    )
    parser.add_argument(
        "--config",
        help="training config (default: the .py file beside the checkpoint, or the one inside it)",
    )
    parser.add_argument(
        "--pixels", choices=PIXELS, default="rgb", help="channel order of the input (default: rgb)"
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="the network computes in half precision")
    precision.add_argument("--int8", action="store_true", help="quantise the network's convolutions")
    parser.add_argument(
        "--images",
        help="with --int8: a folder, list or COCO file to calibrate with (default: training images)",
    )
    parser.add_argument(
        "--calibrate", type=_within(1), default=64, help="number of images for --int8 (default: 64)"
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="compare the metrics of PyTorch and the file on the test data"
    )
    return parser


def convert() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = _plain("Convert a checkpoint of another distillation code base for MMDetection 3.x.")
    parser.add_argument(
        "checkpoint", help="checkpoint of MMRazor, FGD, MGD, CrossKD, LD or mmdet; path or URL"
    )
    parser.add_argument("out", type=Path, help="output file")
    parser.add_argument(
        "--config",
        required=True,
        help="config of the target network; all of its weights must be in the checkpoint",
    )
    parser.add_argument(
        "--part", choices=PARTS, default="student", help="network to extract (default: student)"
    )
    parser.set_defaults(cfg_options=None, **_ALONE)
    return parser


def demo() -> argparse.ArgumentParser:
    """Options of the demo."""
    parser = _plain("Train teacher, student alone and distilled student on the bundled data.")
    parser.add_argument("--work-dir", default="work_dirs/demo", type=Path)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], help="config overrides for training and testing"
    )
    return parser
