"""How far to trust a verdict on distillation: what it would have predicted for finished comparisons.

    python benchmarks/verdicts.py                        # docs/results/*.json
    python benchmarks/verdicts.py --probes work_dirs/*/probe/*/verdict.json

The results have each run's final metrics but no learning curves, so each of these parts of
`mmkd-compare --probe` is tested on its own:

- the paired interval: computed from all seeds but one, whether its sign matches the seed left out;
- the gap: in the same plan, whether classes on which the teacher is no better than the student gain less than
  the others;
- the shrinking gain: for two plans of one pair with different budgets, whether the gain of the shorter and
  the student's AP in the longer predict the gain of the longer;
- the forecast: on simulated learning curves only, power laws from AP 0.1 at the smallest of three budgets
  towards 0.6, with three seeds and the scatter of our runs: how often the interval contains the truth, and
  its width.

With --probes, the predicted gain of real probes is compared with that of the finished plan of the same name.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import write

from mmkd.compare.extrapolation import Forecast, extrapolate
from mmkd.compare.history import class_metrics, metric
from mmkd.compare.statistics import SMALLEST_GAP, paired_difference
from mmkd.compare.verdict import predict_gain

# A shorter training (plan, student, variant) and a longer one (plan, variant) of the same pair and recipe.
BUDGETS = (
    ("bccd_sweep", "student", "kd_features", "bccd_long", "kd_features"),
    ("txl_pbc", "student", "kd", "txl_pbc_plateau", "kd"),
    ("cards_plateau", "student", "kd_auto", "cards_plateau_long", "kd_auto"),
)
SCATTER, REPEATS = 0.008, 200
TEACHER, STUDENT = "teacher", "student"


def parse_args() -> argparse.Namespace:
    """Options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--results", nargs="+", type=Path, default=sorted(Path("docs/results").glob("*.json"))
    )
    parser.add_argument("--probes", nargs="+", type=Path, default=[])
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def maps(plan: Mapping[str, Any], recipe: str) -> dict[int, float]:
    """mAP by seed."""
    found = {}
    for run in plan["runs"]:
        value = metric({k: v for k, v in run["metrics"].items() if v is not None}, "mAP")
        if run["recipe"] == recipe and value is not None:
            found[-1 if run["seed"] is None else run["seed"]] = value
    return found


def variants(plan: Mapping[str, Any]) -> Iterator[str]:
    """The names of the distilled students."""
    alone = next(row.get("config") for row in plan["summary"] if row["role"] == STUDENT)
    return (
        row["recipe"]
        for row in plan["summary"]
        if row["role"] == "distilled" and row.get("config") != alone  # else the student alone, with options
    )


def left_out(plans: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """For each variant and seed, whether the interval of the other seeds predicts its sign; as counts."""
    found = {"undecided": 0, "right": 0, "wrong": 0}
    for plan in plans:
        alone = maps(plan, STUDENT)
        for name in variants(plan):
            own = maps(plan, name)
            for seed in sorted(own.keys() & alone.keys()):
                others = {key: value for key, value in own.items() if key != seed}
                said = paired_difference(others, alone)
                if said is None or said.low is None or said.high is None or said.low <= 0 <= said.high:
                    found["undecided"] += 1
                else:
                    same = (own[seed] - alone[seed] > 0) == (said.mean > 0)
                    found["right" if same else "wrong"] += 1
    return found


def by_class(plans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean AP gain on classes where the teacher is better than the student alone, and on the others."""
    gains: dict[bool, list[float]] = {True: [], False: []}
    for plan in plans:
        classes: dict[str, dict[str, list[float]]] = {}
        for run in plan["runs"]:
            for name, value in class_metrics(
                {k: v for k, v in run["metrics"].items() if v is not None}
            ).items():
                classes.setdefault(name, {}).setdefault(run["recipe"], []).append(value)
        for of in classes.values():
            if TEACHER not in of or STUDENT not in of:
                continue
            alone = statistics.fmean(of[STUDENT])
            better = statistics.fmean(of[TEACHER]) - alone >= SMALLEST_GAP
            for name in variants(plan):
                if name in of:
                    gains[better].append(statistics.fmean(of[name]) - alone)
    return {
        said: {
            "pairs": len(gains[better]),
            "gain": statistics.fmean(gains[better]) if gains[better] else None,
            "gained": sum(gain > 0 for gain in gains[better]),
        }
        for better, said in ((True, "teacher better"), (False, "teacher no better"))
    }


def shrinking(plans: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The longer training's gain predicted from the shorter's, given the student's final AP."""
    rows = []
    for short, student, variant, long, longer in BUDGETS:
        if short not in plans or long not in plans:
            continue
        now = paired_difference(maps(plans[short], variant), maps(plans[short], student))
        then = paired_difference(maps(plans[long], longer), maps(plans[long], STUDENT))
        assert now is not None
        assert then is not None
        reached = statistics.fmean(maps(plans[long], STUDENT).values())
        gain = predict_gain(
            now,
            statistics.fmean(maps(plans[short], student).values()),
            Forecast(reached, reached, reached),
            maps(plans[long], TEACHER)[-1],
        )
        rows.append(
            {
                "pair": f"{short} → {long}",
                "short": now.mean,
                "predicted": gain.mean,
                "verdict": gain.verdict,
                "found": then.mean,
                "interval": [then.low, then.high],
            }
        )
    return rows


def simulated(repeats: int) -> list[dict[str, Any]]:
    """The forecast on simulated power laws, by largest budget and exponent."""
    rows = []
    for share in (0.1, 0.4):
        for exponent in (0.3, 0.5, 1.0, 2.0):
            random = np.random.default_rng(0)
            budgets = np.array([share / 4, share / 2, share])
            slope = 0.5 * budgets[0] ** exponent
            held, widths = 0, []
            for _ in range(repeats):
                noise = random.normal(0, SCATTER, (3, 3))
                values = 0.6 - slope * budgets**-exponent + noise
                points = [(budget, value) for row in values for budget, value in zip(budgets, row)]
                found, _ = extrapolate(points)
                if found is not None:
                    held += int(found.low <= 0.6 - slope <= found.high)
                    widths.append(found.high - found.low)
            row = {"share": share, "exponent": exponent, "whole": 0.6 - slope, "forecasts": len(widths)}
            width = statistics.median(widths) if widths else None
            rows.append({**row, "of": repeats, "held": held, "width": width})
    return rows


def probed(probes: Sequence[Path], plans: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Predicted and final gain of each variant of a probe whose plan is finished."""
    rows = []
    for path in probes:
        probe = json.loads(path.read_text(encoding="utf-8"))
        plan = plans.get(probe["name"])
        for variant in probe["variants"] if plan else ():
            then = paired_difference(maps(plan, variant["name"]), maps(plan, STUDENT))
            if then is not None:
                rows.append(
                    {
                        "plan": probe["name"],
                        "share": probe["share"],
                        "student_forecast": probe["student"]["forecast"],
                        "student_found": statistics.fmean(maps(plan, STUDENT).values()),
                        "variant": variant["name"],
                        "verdict": variant["verdict"],
                        "short": variant["difference"]["mean"],
                        "predicted": variant["predicted"],
                        "found": then.mean,
                        "interval": [then.low, then.high],
                    }
                )
    return rows


def main() -> None:
    """Print the figures and write the JSON."""
    args = parse_args()
    read = [json.loads(path.read_text(encoding="utf-8")) for path in args.results]
    plans = {plan["name"]: plan for plan in read}
    seeds, classes, budgets = left_out(read), by_class(read), shrinking(plans)
    total = sum(seeds.values())
    print(f"\n{len(read)} plans, {total} seeds left out of a variant: by the interval of the others")
    print("| undecided | right | wrong |\n|---|---|---|")
    print(f"| {seeds['undecided']} | {seeds['right']} | {seeds['wrong']} |")
    print("\n| class and variant | pairs | mean gain | gained |\n|---|---|---|---|")
    for said, row in classes.items():
        gain = "–" if row["gain"] is None else f"{row['gain']:+.3f}"
        print(f"| {said} | {row['pairs']} | {gain} | {row['gained']} |")
    print("\n| plans | gain, shorter | predicted, longer | verdict | found, longer |\n|---|---|---|---|---|")
    for row in budgets:
        ends = f"{row['interval'][0]:+.3f} to {row['interval'][1]:+.3f}"
        print(
            f"| {row['pair']} | {row['short']:+.3f} | {row['predicted']:+.3f} | {row['verdict']} | "
            f"{row['found']:+.3f} ({ends}) |"
        )
    curves = simulated(REPEATS)
    print("\n| largest share | exponent | AP at the end | forecasts | held the truth | median width |")
    print("|---|---|---|---|---|---|")
    for row in curves:
        width = "–" if row["width"] is None else f"{row['width']:.2f}"
        cells = [row["share"], row["exponent"], f"{row['whole']:.3f}", f"{row['forecasts']} of {row['of']}"]
        print(f"| {' | '.join(map(str, [*cells, row['held'], width]))} |")
    rows = probed(args.probes, plans)
    if rows:
        print("\n| plan, share | variant | verdict | gain in the probe | predicted | found |")
        print("|---|---|---|---|---|---|")
    for row in rows:
        then = row["predicted"]
        ends = "" if then["low"] is None else f" ({then['low']:+.3f} to {then['high']:+.3f})"
        best = "–" if then["mean"] is None else f"{then['mean']:+.3f}"
        found = f"{row['found']:+.3f} ({row['interval'][0]:+.3f} to {row['interval'][1]:+.3f})"
        cells = [f"{row['plan']}, {row['share']:.2g}", row["variant"], row["verdict"], f"{row['short']:+.3f}"]
        print(f"| {' | '.join([*cells, best + ends, found])} |")
    write("verdicts", args.out, left_out=seeds, by_class=classes, budgets=budgets, curves=curves, probes=rows)


if __name__ == "__main__":
    main()
