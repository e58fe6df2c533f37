"""Search hyperparameters with a W&B sweep file, hosted by W&B or locally."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from mmkd.cli import parsers
from mmkd.cli.common import tool
from mmkd.compat import load_config
from mmkd.errors import UserError
from mmkd.sweeps.overrides import resolve_aliases
from mmkd.sweeps.sweep_file import SweepFile, read_sweep
from mmkd.visualization import check_wandb


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    foreign = ("project", "entity", "sweep_id") if args.local else ("work_dir", "resume", "seed")
    if any(getattr(args, name) for name in foreign) or (args.jobs != 1 and not args.local):
        given = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        parser.error(
            f"{given}{'' if args.local else ', --jobs'} {'do not go' if args.local else 'go'} with --local"
        )


def sweep(args: argparse.Namespace) -> None:
    """Run the trials of a sweep file, locally or hosted by W&B.

    Raises:
        UserError: the sweep file is invalid, or a required package is missing.
    """
    description = read_sweep(args.sweep)
    if "s" in (description.early_terminate or {}) and "min_iter" in (description.early_terminate or {}):
        print("early_terminate: `s` requires max_iter; with min_iter, W&B and this sweep ignore it")
    if args.local:
        sweep_locally(description, args)
    else:
        check_wandb()
        from mmkd.sweeps.hosted import HostedSweep

        hosted = HostedSweep(description, args.project, args.entity)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ending the agent ends its run
        hosted.run(args.sweep_id or hosted.create(), args.count)


def sweep_locally(description: SweepFile, args: argparse.Namespace) -> None:
    """Run the trials on this machine, then write the table, the pictures and the best config.

    Raises:
        UserError: optuna is not installed, or no trial finished.
    """
    try:
        from mmkd.sweeps.local import LocalSweep
    except ImportError as error:
        raise UserError(f"a local sweep needs optuna: pip install optuna ({error})") from error
    work_dir = args.work_dir or Path("work_dirs") / f"sweep_{args.sweep.stem}"
    try:
        study = LocalSweep(description, work_dir, args.jobs, args.seed).run(args.count, args.resume)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("use --resume to continue the sweep") from None
    print(f"{work_dir}/trials.csv: {len(study.trials)} trials")
    finished = [trial for trial in study.trials if trial.value is not None]
    if not finished:
        raise UserError(f"no trial finished; see the logs {work_dir}/trial_*.log")
    best = study.best_trial
    write_best(description, best.user_attrs["parameters"], work_dir / "best.py")
    draw(study, description.metric, work_dir / "sweep.png")
    print(
        f"best: trial {best.number}, {description.metric} {best.value:.4f}, {best.user_attrs['parameters']}"
    )
    again = shlex.join(["python", "tools/train.py", f"{work_dir}/best.py", *description.fixed_arguments])
    print(f"to train it again: {again}")


def write_best(description: SweepFile, values: dict[str, Any], path: Path) -> None:
    """Write a config that inherits from the sweep's and sets the best values."""
    nested: dict[str, Any] = {}
    for key, value in resolve_aliases(load_config(description.config), values).items():
        node = nested
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    base = description.config if "::" in description.config else str(Path(description.config).resolve())
    lines = [f"# The best trial of {description.path}.", f"_base_ = [{base!r}]", ""]
    lines += [f"{key} = {value!r}" for key, value in nested.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(study: Any, metric: str, path: Path) -> None:
    """Draw parallel coordinates of the finished trials, and the metric over the trials."""
    import warnings

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import optuna.visualization.matplotlib as pictures

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna marks these plots as experimental
        for name, plot in (
            ("", pictures.plot_parallel_coordinate),
            ("_history", pictures.plot_optimization_history),
        ):
            axes = plot(study, target_name=metric)
            keys = [metric, *sorted(study.best_trial.params)]
            if not name and len(axes.get_xticks()) == len(keys):
                # optuna truncates long names, just where dotted keys differ
                axes.set_xticks(axes.get_xticks(), [".".join(key.split(".")[-2:]) for key in keys])
            if name:
                axes.xaxis.get_major_locator().set_params(integer=True)
            axes.figure.set_size_inches(10, 5)
            axes.figure.savefig(path.with_stem(path.stem + name), dpi=120, bbox_inches="tight")
            plt.close(axes.figure)


parse_args, main = tool(parsers.sweep, sweep, _check)

if __name__ == "__main__":
    sys.exit(main())
