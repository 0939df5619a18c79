"""The panel of an export, from its files to the page: what `lvsm eval --panel` runs."""

import copy
import dataclasses
import json
import time
from typing import Any

import jax
import ml_collections
from etils import epath

from input_pipeline.loading import EvalSet, arrange_inputs
from lvsm_jax.batch import Batch
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import clear_unfinished, write_text
from lvsm_jax.common.table import format_table
from lvsm_jax.evaluation import panel, panel_page, report, scoring
from lvsm_jax.evaluation.panel import INPUTS, Changed, Row
from lvsm_jax.parallel import processes
from lvsm_jax.parallel.mesh import check_batch
from lvsm_jax.programs.evaluation_run import prepare
from lvsm_jax.scenes.placing import ARRANGEMENTS
from lvsm_jax.worlds.held_out import LENSES, HeldOutWorlds

RESULT = "panel.json"
WORLD_VIEWS = 24  # along a path, at least: room for the most inputs, spread or contiguous


def evaluate_panel(
    config: ml_collections.ConfigDict,
    checkpoint: epath.PathLike,
    output: epath.PathLike,
    *,
    beside: epath.PathLike | None = None,
    overwrite: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Scores an export under all changes, writes panel.json and index.html, returns the former.

    On worlds, `eval.world_views` becomes `WORLD_VIEWS` where it is less. Errors are those of
    `evaluation_run.evaluate_export`.
    """
    output, config = epath.Path(output), copy.deepcopy(config)
    if config.eval.get("worlds"):
        config.eval.world_views = max(config.eval.get("world_views", 0), WORLD_VIEWS)
    opened = prepare(config, checkpoint, output / RESULT, beside, overwrite=overwrite)
    for count in INPUTS:
        check_batch(opened.mesh, "a row of the panel", opened.settings.batch_size, count)
    start = time.monotonic()
    with jax.set_mesh(opened.mesh), processes.ending_at_once():
        rows = panel_rows(opened.eval_set)
        model, metrics, how = opened.load()
        progress = processes.is_main()
        found = panel.evaluate_panel(model, rows, metrics=metrics, progress=progress, **how)
        shown = [scene for (scene,) in report.choose_scenes(found[0], 1).values()]
        pictures = [
            scoring.render_scenes(model, row.views.some(shown), **how) if scores else None
            for row, scores in zip(rows, found, strict=True)
        ]
    summary = {
        "rows": panel.summarize(rows, found),
        "beside": opened.about_beside() if opened.beside else None,
        **opened.about(),
        "command": command,
        "config": config.to_dict(),
        "seconds": round(time.monotonic() - start, 1),
    }
    if processes.is_main():
        output.mkdir(parents=True, exist_ok=True)
        clear_unfinished(output)
        (output / RESULT).unlink(missing_ok=True)
        page = panel_page.render_page(summary, found, pictures, shown)
        write_text(output / "index.html", page)
        # The last one: where it is, so is the page.
        text = json.dumps(summary, indent=2, allow_nan=False)
        write_text(output / RESULT, f"{text}\n")
    return summary


def panel_rows(views: EvalSet | HeldOutWorlds) -> list[Row]:
    """All rows of a panel, the unchanged one first, which rows that equal it share."""
    of_worlds = isinstance(views, HeldOutWorlds)
    if of_worlds:
        views = dataclasses.replace(views, kept={})  # each world is rendered once
    zoomed, arranged = (
        (_zoomed_worlds, _arranged_worlds) if of_worlds else (_zoomed_clips, _arranged_clips)
    )
    rows = [Row("none", "unchanged", views), *panel.frame_rows(views)]
    rows += [Row("lens", f"targets' focal length × {x:g}", zoomed(views, x)) for x in LENSES]
    for count in INPUTS:
        for way in ARRANGEMENTS if count > 1 else ARRANGEMENTS[:1]:
            name = f"{count} inputs, {way}" if count > 1 else "1 input, the middle one"
            rows.append(Row("inputs", name, arranged(views, way, count)))
    return rows


def _zoomed_worlds(views: HeldOutWorlds, factor: float) -> HeldOutWorlds:
    return dataclasses.replace(views, lens=factor)


def _arranged_worlds(views: HeldOutWorlds, arrangement: str, count: int) -> HeldOutWorlds:
    placed = {"num_inputs": count, "world_inputs": arrangement}
    evaluation = dataclasses.replace(views.evaluation, **placed)
    same = evaluation == views.evaluation
    return views if same else dataclasses.replace(views, evaluation=evaluation)


def _zoomed_clips(views: EvalSet, factor: float) -> Changed | str:
    """Targets cut narrower or wider than inputs out of their photographs, as far as these go."""
    share = views.evaluation.crop_share / factor
    if share > 1:
        return "photographs show nothing beyond their edges"
    evaluation = dataclasses.replace(views.evaluation, crop_share=share)

    def with_targets(batch: Batch, zoomed: Batch) -> Batch:
        return dataclasses.replace(batch, targets=zoomed.targets)

    return Changed((views, dataclasses.replace(views, evaluation=evaluation)), with_targets)


def _arranged_clips(views: EvalSet, arrangement: str, count: int) -> EvalSet | str:
    try:
        arranged = arrange_inputs(views, arrangement, count)
    except UserError as error:
        return str(error)
    pairs = zip(arranged.views, views.views, strict=True)
    same = all(one.inputs.tolist() == other.inputs.tolist() for one, other in pairs)
    return views if same else arranged


def table(summary: dict[str, Any]) -> str:
    """The panel, for a terminal."""
    records, second = summary["rows"], panel.second_metric(summary["rows"][0])
    names = panel_page.short_names(summary)
    header = [f"{records[0]['num_images']:,} targets"]
    for name in names:
        header += [f"{name} PSNR", "Δ", second.upper()]
    digits = [None, *(".2f", "+.2f", ".3f") * len(names)]
    tables = [format_table(header, _written(panel.score_cells(records), digits))]
    if seen := panel.seen_cells(records):
        header = ["PSNR of pixels seen by"]
        for group in scoring.SEEN_BY:
            header += [group, *names]
        digits = [None, *(".0%", *[".2f"] * len(names)) * len(scoring.SEEN_BY)]
        tables.append(format_table(header, _written(seen, digits)))
    told = [f"{row['name']}: {row['left_out']}" for row in records if row["left_out"]]
    if beside := summary["beside"]:
        told += [f"model: {summary['weights']}", f"{beside['label']}: {beside['weights']}"]
    return "\n\n".join([*tables, *(["\n".join(told)] if told else [])])


def _written(cells: list[list[Any]], digits: list[str | None]) -> list[list[Any]]:
    """Cells as text; None stays."""
    return [
        [
            cell if cell is None or form is None else format(cell, form)
            for cell, form in zip(row, digits, strict=True)
        ]
        for row in cells
    ]
