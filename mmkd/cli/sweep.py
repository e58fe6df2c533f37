"""Search over the options of a config on this machine, from a W&B sweep file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmkd.cli.common import run
from mmkd.compat import load_config
from mmkd.errors import UserError
from mmkd.sweeps.overrides import resolve_aliases
from mmkd.sweeps.sweep_file import SweepFile, read_sweep


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="a sweep file, as `wandb sweep` takes it")
    parser.add_argument(
        "--local", action="store_true", required=True, help="run the sweep here, without an account"
    )
    parser.add_argument("--count", type=int, required=True, help="number of trials")
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/sweep_<file>")
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in the work dir")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    parser.add_argument("--seed", type=int, help="of the suggestions")
    return parser.parse_args(argv)


def sweep(args: argparse.Namespace) -> None:
    """Run the trials, then write the table, the picture and the best config.

    Raises:
        UserError: the sweep file is wrong, or optuna is not installed.
    """
    description = read_sweep(args.sweep)
    try:
        from mmkd.sweeps.local import LocalSweep
    except ImportError as error:
        raise UserError(f"a local sweep needs optuna: pip install optuna ({error})") from error
    work_dir = args.work_dir or Path("work_dirs") / f"sweep_{args.sweep.stem}"
    if "s" in (description.early_terminate or {}) and "min_iter" in (description.early_terminate or {}):
        print(
            "early_terminate: `s` goes with max_iter; beside min_iter W&B ignores it, and so does this sweep"
        )
    study = LocalSweep(description, work_dir, args.jobs, args.seed).run(args.count, args.resume)
    print(f"{work_dir}/trials.csv: {len(study.trials)} trials")
    finished = [trial for trial in study.trials if trial.value is not None]
    if not finished:
        raise UserError(f"no trial finished; their logs are {work_dir}/trial_*.log")
    best = study.best_trial
    write_best(description, best.user_attrs["parameters"], work_dir / "best.py")
    draw(study, description.metric, work_dir / "sweep.png")
    print(
        f"best: trial {best.number}, {description.metric} {best.value:.4f}, {best.user_attrs['parameters']}"
    )
    print(f"train it again: python tools/train.py {work_dir}/best.py")


def write_best(description: SweepFile, values: dict[str, Any], path: Path) -> None:
    """Write a config that inherits the sweep's and holds the best values."""
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
    path.write_text("\n".join(lines) + "\n")


def draw(study: Any, metric: str, path: Path) -> None:
    """Parallel coordinates of the finished trials, and the metric over the trials."""
    import warnings

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import optuna.visualization.matplotlib as pictures

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna calls these pictures experimental
        for name, plot in (
            ("", pictures.plot_parallel_coordinate),
            ("_history", pictures.plot_optimization_history),
        ):
            axes = plot(study, target_name=metric)
            keys = [metric, *sorted(study.best_trial.params)]
            if not name and len(axes.get_xticks()) == len(keys):
                # optuna cuts long names off, where dotted keys begin to differ
                axes.set_xticks(axes.get_xticks(), [".".join(key.split(".")[-2:]) for key in keys])
            axes.figure.set_size_inches(10, 5)
            axes.figure.savefig(path.with_stem(path.stem + name), dpi=120, bbox_inches="tight")
            plt.close(axes.figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = parse_args(argv)
    return run(lambda: sweep(args))
