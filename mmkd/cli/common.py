"""Shared code of the tools: options, config reading and error reporting."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmkd.build_errors import explained
from mmkd.cli.console import nobody_reads, print_anything
from mmkd.cli.failures import of_the_place
from mmkd.compat import load_config, similar_config
from mmkd.datasets import annotation_file, below, innermost, places_of, where_from
from mmkd.doctor.spelling import KNOWN
from mmkd.durable import use_durable_files
from mmkd.errors import UserError, nearest, place_of
from mmkd.functional.checks import is_number
from mmkd.hooks import TrainingStopped
from mmkd.registry import name_in
from mmkd.sharding import check_strategy
from mmkd.sweeps.agent import in_sweep, parameters, run_id
from mmkd.sweeps.overrides import ALIASES, KeepingDictAction, check_overrides, resolve_aliases
from mmkd.terminal import short_output
from mmkd.torchvision import survive
from mmkd.visualization import finish_failed


def read_config(args: argparse.Namespace, prepare: Callable[[Config], object] | None = None) -> Config:
    """Read the config that the arguments name, with their overrides and work dir.

    Args:
        args: arguments of a parser based on `mmkd.cli.parsers.config`.
        prepare: changes the config before the overrides apply.

    Raises:
        UserError: the file is missing or broken.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    try:
        cfg = load_config(args.config)
        if prepare is not None:
            prepare(cfg)
        given = {**parameters(), **(args.cfg_options or {})}
        if given:
            options = resolve_aliases(cfg, given)
            check_overrides(cfg, options, strict=in_sweep())
            for key in options:
                _warn_of(cfg, key)
            cfg.merge_from_dict(options)
    except UserError:
        raise
    except Exception as error:
        near = similar_config(error)
        raise UserError(
            "Cannot read config.",
            expected="an mmengine config file",
            found=f"{args.config} ({type(error).__name__}: {str(error) or _line_of_config(error)})",
            remedy=f"did you mean {near}?" if near else "correct the path, the file, or --cfg-options",
        ) from error
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(args.config).stem)
    if run_id() is not None:  # the runs of a sweep share the command
        cfg.work_dir = os.path.join(cfg.work_dir, str(run_id()))
    return cfg


def _line_of_config(error: Exception) -> str:
    """The line of a pure-Python config at which mmengine failed without a message."""
    pairs = zip(traceback.walk_tb(error.__traceback__), traceback.extract_tb(error.__traceback__))
    lines = [
        f"line {line.lineno} {line.line!r}" for (frame, _), line in pairs if "__name__" not in frame.f_globals
    ]
    return (
        f"mmengine does not run {lines[-1]}; refer to classes there, but do not call anything imported"
        if lines
        else ""
    )


def _warn_of(cfg: Config, key: str) -> None:
    """Warn if an override adds a top-level key, because nothing reads it."""
    name = key.partition(".")[0]
    if name in cfg or name in KNOWN:
        return
    near = nearest(name, {*KNOWN, *cfg})
    near = near or next((each for each in ALIASES.values() if each.rpartition(".")[2] == name), None)
    advice = f"; did you mean {key.replace(name, near, 1)}?" if near else ""
    print(f"mmkd: warning: --cfg-options sets {key}, which nothing reads{advice}", file=sys.stderr)


def tool(
    parser: Callable[[], argparse.ArgumentParser],
    work: Callable[[argparse.Namespace], object],
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None] | None = None,
) -> tuple[Callable[..., argparse.Namespace], Callable[..., int]]:
    """The ``parse_args`` and ``main`` of a tool; both take ``argv``, by default the command line's.

    Args:
        parser: makes the parser of the tool's options.
        work: runs the tool; if it returns a number, that is the exit code.
        check: refuses incompatible options by calling ``parser.error``.
    """

    def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
        options = parser()
        args = parse(options, argv)
        if check is not None:
            check(options, args)
        return args

    def main(argv: Sequence[str] | None = None) -> int:
        args = parse_args(argv)
        return run(lambda: work(args), args.verbose)

    return parse_args, main


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments; in a sweep, ``--key=value`` of its parameters are overrides too.

    The macros ``${args}`` and ``${args_no_boolean_flags}`` of a sweep file produce these arguments.
    """
    args, unknown = parser.parse_known_args(argv)
    for word in unknown:
        key, _, value = word.removeprefix("--").partition("=")
        if not (in_sweep() and word.startswith("--") and (value or key in parameters())):
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        # Without a value it is a boolean flag.
        option = {key: KeepingDictAction._parse_iterable(value) if value else True}
        args.cfg_options = {**(args.cfg_options or {}), **option}
    return args


def prepare_data(cfg: Config, loaders: Sequence[str]) -> None:
    """Turn fractional ``indices`` into subsets, and check that the data exists.

    Args:
        cfg: changed in place.
        loaders: the data loaders that the tool will use.

    Raises:
        UserError: an annotation file is missing, or ``indices`` is a fraction for a data set that is
            evaluated against its whole annotation file.
    """
    for name in loaders:
        if cfg.get(name) is None:
            continue
        _push_indices(cfg[name].get("dataset"))
        for parent, key in places_of(cfg[name]):
            dataset = parent[key]
            _check_annotations(name, dataset)
            fraction = dataset.get("indices")
            _check_indices(name, fraction)
            if isinstance(fraction, float):
                if name != "train_dataloader":
                    raise UserError(
                        f"A fraction of {name} would be evaluated against the full annotation file.",
                        expected="`indices` as a fraction for train_dataloader only",
                        found=f"{name}.dataset.indices={fraction}",
                        remedy="use an annotation file with fewer images",
                    )
                whole = dataset.copy()  # several places may share this dict
                whole.pop("indices")
                parent[key] = ConfigDict(
                    type=name_in(cfg, "FractionOfDataset"), dataset=whole, fraction=fraction
                )


def _push_indices(dataset: Any) -> None:
    """Move ``indices`` from wrappers, which do not support it, to their data sets; the outermost counts."""
    if not isinstance(dataset, Mapping):
        return
    parts = below(dataset)
    for part in parts:
        _push_indices(part)
    if parts and "indices" in dataset:
        indices = dataset.pop("indices")  # type: ignore[attr-defined]
        for one in innermost(dataset):
            one["indices"] = indices


def _check_indices(loader: str, indices: Any) -> None:
    number = is_number(indices) and indices != 0
    numbers = isinstance(indices, (list, tuple)) and indices and all(isinstance(i, int) for i in indices)
    if not (indices is None or number or numbers):
        raise UserError(
            f"Invalid {loader}.dataset.indices.",
            expected="a fraction between 0 and 1, a number of samples, or a list of sample indices",
            found=repr(indices),
            remedy=f"for example {loader}.dataset.indices=100",
        )


def _check_annotations(loader: str, dataset: Mapping[str, Any]) -> None:
    path, root = annotation_file(dataset), dataset.get("data_root")
    if path is not None and not path.exists():
        raise UserError(
            f"Data set of {loader} not found.",
            expected=f"annotations at {path}" + ("" if path.is_absolute() else f" below {Path.cwd()}"),
            found="no such file" if not root or Path(root).exists() else f"no folder {root}",
            remedy=f"{where_from(path)}, or set {loader}.dataset.data_root (and the evaluator's ann_file)",
        )


def build_runner(cfg: Config) -> Any:
    """Build the Runner of a config, also for several processes on CPUs.

    mmengine's launcher selects a CUDA device for every backend. Without CUDA, the process group is therefore
    initialised here, with gloo.
    """
    check_strategy(cfg)
    survive()  # the Runner imports torchvision to log its version
    if cfg.launcher == "pytorch" and get_device() == "cpu":
        torch.distributed.init_process_group("gloo")
        wrapper = {
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "broadcast_buffers": False,
            "find_unused_parameters": cfg.get("find_unused_parameters", False),
        }
        cfg.model_wrapper_cfg = wrapper
        if "strategy" in cfg:  # mmengine's FlexibleRunner reads only its strategy
            cfg.strategy.setdefault("model_wrapper", wrapper)
    return Runner.from_cfg(cfg) if "runner_type" not in cfg else RUNNERS.build(cfg)


def run(main: Callable[[], object], verbose: bool = False) -> int:
    """Call a tool with short output, and report errors in plain words.

    Args:
        main: the tool's work; if it returns a number, that is the exit code.
        verbose: show what libraries print, log and warn of.

    Returns:
        The exit code: 0 for success; that of `TrainingStopped`; 2 for errors that the user can fix; 1 for
        others, after the traceback; 130 after an interrupt.
    """
    print_anything()
    use_durable_files()
    code: Any = 0
    try:
        try:
            with short_output(verbose):
                done = main()
                code = done if isinstance(done, int) else 0
        except TrainingStopped as stopped:
            code = stopped.code
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            gc.collect()  # the Runner keeps the group alive in cycles, and gloo's threads may abort at exit
        return int(code)
    except UserError as error:
        print(f"\nmmkd: error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # like `| head`
        nobody_reads()
        return int(code)
    except KeyboardInterrupt as error:
        print(f"\nmmkd: interrupted{f'; {error}' if str(error) else ''}", file=sys.stderr)
        code = 130
    except Exception as error:
        told: object = of_the_place(error) or explained(error)
        code = 2
        if told is None:
            traceback.print_exc()
            lines = [f"{type(error).__name__}: {error}", place_of(error), "(the traceback is above)"]
            told, code = "\n  ".join(filter(None, lines)), 1
        print(f"\nmmkd: error: {told}", file=sys.stderr)
    finish_failed(code)
    return int(code)
