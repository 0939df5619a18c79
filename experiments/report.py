"""Tables and figures of `experiments`, of whatever arms and seeds there are so far.

A number is the mean over the seeds whose runs are done; where there are several, the spread,
largest less smallest, stands beside it in parentheses. Differences are taken seed by seed.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import label_lines, markdown_table, plain_axes, view_axis
from experiments.runs import Curve, psnr_at
from lvsm_jax.evaluation.scoring import COPY_NEAREST, MODEL

BASE = "plucker"
_STYLES = {
    "plucker": ("Plücker", "#0072B2"),
    "prope": ("PRoPE", "#D55E00"),
    "plucker_prope": ("Plücker and PRoPE", "#E69F00"),
    "last_layer": ("encoder's last layer", "#009E73"),
    "shared_streams": ("shared streams", "#CC79A7"),
    "many_scenes": ("16 scenes × 2 targets", "#8A6FBF"),
    "varied": ("Plücker, 1–8 inputs", "#56B4E9"),
    "both_varied": ("both, 1–8 inputs", "#B22222"),
    "both_varied_scaled": ("…, residuals × 1/√L", "#7F7F7F"),
    "both_varied_log": ("…, log temperature", "#8C6D31"),
    "both_varied_cameras": ("…, other cameras", "#4B0082"),
    "all_changes": ("…, all three", "#000000"),
}
NAMES = {arm: name for arm, (name, _) in _STYLES.items()}
COLORS = {arm: color for arm, (_, color) in _STYLES.items()}
# What stands beside each other in view_counts.png.
PANELS = {
    "cameras and streams, trained on two inputs": list(NAMES)[:6],
    "trained on one to eight inputs": [BASE, *list(NAMES)[6:]],
}
SHARES = (0.25, 0.5, 0.75, 1.0)

# A number of a run that is done; None where it has none.
Value = Callable[[Mapping[str, Any]], float | None]


def score(values: Iterable[float | None]) -> dict[str, Any] | None:
    """Mean and spread of the values that there are; None without any."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    spread = max(there) - min(there)
    return {"mean": statistics.mean(there), "spread": spread, "seeds": len(there)}


def done(arm: Mapping[str, Any]) -> dict[str, Any]:
    """The runs of an arm that are at their end, by seed."""
    return {seed: run for seed, run in arm["runs"].items() if "inputs" in run}


def psnr_by_inputs(
    arm: Mapping[str, Any], counts: Sequence[int], method: str = MODEL
) -> dict[str, dict[str, Any] | None]:
    """Scores over the seeds of an arm, by number of inputs."""
    runs = done(arm).values()
    return {str(n): score(run["inputs"][str(n)][method] for run in runs) for n in counts}


def tables(report: Mapping[str, Any]) -> str:
    """All tables in Markdown."""
    parts = [
        f"Seconds a step: {report['timing']['source']}. In parentheses the spread over seeds.",
        ("Relative cameras against rays", over_training(report, (BASE, "prope"))),
        ("Both against rays", over_training(report, (BASE, "plucker_prope"))),
        ("PSNR, dB, by number of inputs", _by_inputs(report)),
        ("What each arm costs, and scores with two inputs", _costs(report)),
        ("The same FLOPs on few scenes or on many", _over_flops(report, (BASE, "many_scenes"))),
    ]
    return "\n\n".join(
        part if isinstance(part, str) else f"### {part[0]}\n\n{part[1]}"
        for part in parts
        if part[1]
    )


def over_training(
    report: Mapping[str, Any], names: Sequence[str], labels: Mapping[str, str] = NAMES
) -> str:
    """PSNR after the same steps, and after the same time; the shortest run ends both."""
    arms = {name: report["arms"][name] for name in names if name in report["arms"]}
    if not arms:
        return ""
    seconds = report["timing"]["step_seconds"]
    steps, end = common_end(arms, seconds)
    rows = [
        [f"{share * steps:.0f} steps", *_compared(arms, dict.fromkeys(arms, share * steps))]
        for share in SHARES
    ]
    if end is not None:
        for share in SHARES:
            # At the end rounding must not ask for more steps than there are.
            at = {name: round(share * end / seconds[name], 6) for name in arms}
            rows.append([f"{share * end / 60:.1f} minutes", *_compared(arms, at)])
    return markdown_table(["PSNR, dB, after", *_compared_header(arms, labels)], rows)


def common_end(arms: Mapping[str, Any], seconds: Mapping[str, float]) -> tuple[int, float | None]:
    """Steps and seconds that all arms have trained for; None where a step's time is unknown."""
    steps = min(arm["steps"] for arm in arms.values())
    if not arms.keys() <= seconds.keys():
        return steps, None
    return steps, min(arm["steps"] * seconds[name] for name, arm in arms.items())


def _over_flops(report: Mapping[str, Any], names: Sequence[str]) -> str:
    """PSNR after shares of the training, which has as many FLOPs for each."""
    arms = {name: report["arms"][name] for name in names if name in report["arms"]}
    if not arms:
        return ""
    total = max(arm["steps"] * arm["step_flops"] for arm in arms.values())
    rows = []
    for share in SHARES:
        at = {name: share * arm["steps"] for name, arm in arms.items()}
        rows.append([f"{share * total / 1e12:.1f}", *_compared(arms, at)])
    return markdown_table(["PSNR, dB, after TFLOPs", *_compared_header(arms, NAMES)], rows)


def _compared_header(arms: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    header = [f"{labels[name]}, {_seeds(arm)}" for name, arm in arms.items()]
    return [*header, "difference"] if len(arms) == 2 else header


def _compared(arms: Mapping[str, Any], at: Mapping[str, float]) -> list[str | None]:
    """Cells of a row: PSNR of each arm at a step of its own, and the difference of two."""

    def value(name: str) -> Value:
        return lambda run: psnr_at([tuple(point) for point in run["curve"]], at[name])

    cells = [_cell(score(map(value(name), done(arm).values()))) for name, arm in arms.items()]
    if len(arms) == 2:
        (first, one), (second, other) = arms.items()
        cells.append(_cell(_difference(one, other, value(first), value(second)), "+.2f"))
    return cells


def _difference(
    base: Mapping[str, Any], arm: Mapping[str, Any], base_value: Value, value: Value
) -> dict[str, Any] | None:
    """By how much an arm is above another, over the seeds that both have."""
    bases, runs, differences = done(base), done(arm), []
    for seed in bases.keys() & runs.keys():
        pair = base_value(bases[seed]), value(runs[seed])
        differences.append(None if None in pair else pair[1] - pair[0])
    return score(differences)


def _by_inputs(report: Mapping[str, Any]) -> str:
    counts = [str(count) for count in report["inputs"]]
    rows = [
        [NAMES[name], *(_cell(arm["psnr"][count]) for count in counts), len(done(arm))]
        for name, arm in report["arms"].items()
    ]
    if nearest := _copy_nearest(report):
        rows.append(["the nearest input, copied", *(f"{value:.2f}" for value in nearest), None])
    return markdown_table(["inputs", *counts, "seeds"], rows)


def _costs(report: Mapping[str, Any]) -> str:
    seconds, base = report["timing"]["step_seconds"], report["arms"].get(BASE)
    count = "2" if 2 in report["inputs"] else str(report["inputs"][0])

    def value(run: Mapping[str, Any]) -> float:
        return run["inputs"][count][MODEL]

    rows = []
    for name, arm in report["arms"].items():
        against = _difference(base, arm, value, value) if base and name != BASE else None
        time = f"{seconds[name]:.3f}" if name in seconds else None
        weights, flops = f"{arm['parameters'] / 1e6:.2f} M", f"{arm['step_flops'] / 1e9:.1f}"
        scores = _cell(arm["psnr"][count]), _cell(against, "+.2f")
        rows.append([NAMES[name], weights, flops, time, arm["steps"], *scores, len(done(arm))])
    header = ["arm", "weights", "GFLOPs a step", "s a step", "steps", f"PSNR, {count} inputs, dB"]
    return markdown_table([*header, f"against {NAMES[BASE]}", "seeds"], rows)


def _copy_nearest(report: Mapping[str, Any]) -> list[float] | None:
    """PSNR of the nearest input by number of inputs; the same for all runs."""
    for arm in report["arms"].values():
        for run in done(arm).values():
            return [run["inputs"][str(count)][COPY_NEAREST] for count in report["inputs"]]
    return None


def _cell(value: Mapping[str, Any] | None, form: str = ".2f") -> str | None:
    if value is None:
        return None
    spread = f" ({value['spread']:.2f})" if value["seeds"] > 1 else ""
    return format(value["mean"], form) + spread


def _seeds(arm: Mapping[str, Any]) -> str:
    count = len(done(arm))
    return f"{count} seed{'' if count == 1 else 's'}"


def draw_curves(report: Mapping[str, Any], names: Sequence[str]) -> Figure | None:
    """PSNR over steps and over minutes: a thin line a seed, a thick one for their mean.

    Runs that are not done are drawn as far as they are.
    """
    arms, curves = report["arms"], {}
    for name in (name for name in names if name in arms):
        if own := [run["curve"] for run in arms[name]["runs"].values() if run["curve"]]:
            curves[name] = own
    if not curves:
        return None
    data = arms[next(iter(curves))]["config"]["data"]
    labels = {name: f"{NAMES[name]} ({len(own)})" for name, own in curves.items()}
    figure, (over_steps, _) = draw_training(curves, report["timing"], labels, COLORS)
    figure.suptitle(f"Held-out PSNR in training, {data['image_height']} px, 2 inputs", fontsize=12)
    over_steps.set_ylabel("PSNR, dB (in parentheses: seeds)")
    return figure


def draw_training(
    curves: Mapping[str, Sequence[Curve]],
    timing: Mapping[str, Any],
    labels: Mapping[str, str],
    colors: Mapping[str, str],
) -> tuple[Figure, Sequence[Axes]]:
    """PSNR over steps, and over the minutes that these take: the curves of each, and their mean."""
    seconds = timing["step_seconds"]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    over_steps, over_time = figure.subplots(1, 2, sharey=True)
    for axes, scales in (
        (over_steps, dict.fromkeys(curves, 1.0)),
        (over_time, {name: seconds[name] / 60 for name in curves if name in seconds}),
    ):
        for name, scale in scales.items():
            for curve in curves[name]:
                x, y = np.array(curve).T
                axes.plot(scale * x, y, color=colors[name], linewidth=0.8, alpha=0.7)
            x, y = np.array(_mean_curve(curves[name])).T
            axes.plot(scale * x, y, color=colors[name], linewidth=2.2, label=labels[name])
        axes.set_xlim(left=0)
        plain_axes(axes)
        label_lines(axes)
    over_steps.set(xlabel="steps", ylabel="PSNR, dB")
    over_time.set_xlabel(f"minutes = steps × seconds a step,\n{timing['source']}")
    return figure, (over_steps, over_time)


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean at the steps that all have."""
    values = [dict(map(tuple, curve)) for curve in curves]
    steps = sorted(set.intersection(*(set(curve) for curve in values)))
    return [(step, statistics.mean(curve[step] for curve in values)) for step in steps]


def draw_view_counts(report: Mapping[str, Any]) -> Figure | None:
    """PSNR over the number of inputs, with the spread over seeds as a band."""
    nearest, counts = _copy_nearest(report), report["inputs"]
    if nearest is None:
        return None
    arms = {name: arm for name, arm in report["arms"].items() if done(arm)}
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle("Held-out PSNR by number of inputs, of targets that are none of them")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (title, names) in zip(panels, PANELS.items(), strict=True):
        axes.plot(counts, nearest, ":", color="0.5", label="nearest input")
        for name in (name for name in names if name in arms):
            runs = [run["inputs"].values() for run in done(arms[name]).values()]
            values = np.array([[scores[MODEL] for scores in run] for run in runs])
            color, label = COLORS[name], f"{NAMES[name]} ({len(values)})"
            axes.plot(counts, values.mean(0), "o-", markersize=4, color=color, label=label)
            band = values.min(0), values.max(0)
            axes.fill_between(counts, *band, color=color, alpha=0.2, linewidth=0)
        view_axis(axes, counts)
        axes.set_xlabel("input views")
        axes.set_title(title, fontsize=10)
        label_lines(axes)
        axes.set_ylabel("PSNR, dB (in parentheses: seeds)" if "cameras" in title else "")
    return figure


def draw_pictures(scenes: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> Figure:
    """Of each scene a row an arm: renders from more and more inputs, then the target."""
    arms = list(scenes[0]["renders"])
    rows, columns = len(scenes) * len(arms), len(counts) + 1
    figure = Figure(figsize=(1.5 * columns + 0.4, 1.7 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    lines = [(scene, name) for scene in scenes for name in arms]
    for line, (scene, name) in zip(grid, lines, strict=True):
        for axes, count in zip(line, counts, strict=False):
            render = np.clip(scene["renders"][name][count], 0, 1)
            decibels = -10 * np.log10(np.square(render - scene["target"]).mean())
            _show(axes, render, f"{decibels:.1f} dB")
        _show(line[-1], scene["target"], "")
        line[0].set_ylabel(NAMES[name], fontsize=9)
    titles = [f"{count} input{'' if count == 1 else 's'}" for count in counts]
    for axes, title in zip(grid[0], [*titles, "target"], strict=True):
        axes.set_title(title, fontsize=10)
    return figure


def _show(axes: Axes, image: np.ndarray, text: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_xlabel(text, fontsize=8, labelpad=2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
