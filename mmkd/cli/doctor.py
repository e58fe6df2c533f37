"""Check a config before training it for hours."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from functools import partial

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope

from mmkd.amp import use_amp
from mmkd.cli import parsers
from mmkd.cli.common import parse, prepare_data, read_config, run
from mmkd.cli.train import add_teacher, add_wandb
from mmkd.datasets import innermost
from mmkd.doctor import Section, TrainingSetup, as_data, count, examine, html_page, page
from mmkd.doctor.findings import from_error
from mmkd.durable import write_file, write_json
from mmkd.errors import UserError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of training that change what is trained, and how much to look at."""
    parser = parsers.doctor()
    return parse(parser, argv)


def diagnose(args: argparse.Namespace, sections: list[Section]) -> None:
    """Check the config that the arguments name, and print the report.

    Args:
        args: the parsed arguments.
        sections: list that receives the findings before anything is printed.

    Raises:
        UserError: the config cannot be read, or an argument is out of range.
    """
    if args.html is not None and importlib.util.find_spec("jinja2") is None:
        raise UserError("--html needs jinja2: pip install jinja2 (or 'mmkd[compare]')")
    add = partial(add_teacher, teacher=args.teacher, checkpoint=args.teacher_checkpoint)
    cfg = read_config(args, add if args.teacher or args.teacher_checkpoint else None)
    if "model" not in cfg:
        raise UserError(
            "The config has nothing to train.",
            expected="a model",
            found=", ".join(cfg),
            remedy="choose another file",
        )
    device = get_device()
    if args.amp:
        use_amp(cfg, device)
    if args.wandb:
        add_wandb(cfg)
    init_default_scope(cfg.get("default_scope") or "mmdet")
    sections += [prepared] if (prepared := _prepare(cfg)).findings else []
    setup = TrainingSetup(cfg, args.images, str(device))
    sections += examine(setup, begin=_announce)
    title = f"mmkd doctor: {args.config}"
    if args.json is not None:
        write_json(args.json, as_data(title, sections))
    if args.html is not None:
        write_file(args.html, html_page(title, sections).encode())
    print(page(title, sections, colour=sys.stdout.isatty()))


def _prepare(cfg: Config) -> Section:
    """Resolve fractions of data sets, as training does."""
    section = Section("config")
    for name in ("train_dataloader", "val_dataloader"):
        datasets = innermost((cfg.get(name) or {}).get("dataset"))
        try:
            if any(isinstance(dataset.get("indices"), float) for dataset in datasets):
                prepare_data(cfg, [name])
        except UserError as error:
            section.findings.append(from_error(name, error))
    return section


def _announce(title: str) -> None:
    if sys.stderr.isatty():
        print(f"examining: {title} …", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = parse_args(argv)
    sections: list[Section] = []
    code = run(lambda: diagnose(args, sections), args.verbose)
    return code or (1 if count(sections, "error") else 0)


if __name__ == "__main__":
    sys.exit(main())
