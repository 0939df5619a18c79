"""What benchmarks compute, tabulate and draw; no test of speed."""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import __main__ as benchmarks
from benchmarks import incremental, losses, models, worlds, worlds_compiled
from benchmarks.common import label_lines, measure_call, random_batch
from input_pipeline.clip_scene import open_scene
from input_pipeline.storage import SplitReader
from lvsm_jax.common.errors import UserError
from lvsm_jax.cost.hlo import Instruction
from lvsm_jax.models.architectures import CONFIGS
from lvsm_jax.worlds.config import WorldsConfig
from tests.helpers.plain_worlds import use_plain_worlds
from tests.helpers.tiny_export import save_tiny_export


def test_names_are_in_the_order_in_which_lines_end():
    axes = Figure().subplots()
    axes.plot([1, 2], [5, 0], label="falls")
    axes.plot([1, 2], [0, 5], label="rises")
    axes.plot([1, 2], [9, 9])
    label_lines(axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["rises", "falls"]


@pytest.mark.parametrize(("seconds", "calls"), [(1e9, 3), (1e-12, 1)])
def test_slow_calls_are_made_once(seconds, calls):
    made = []

    def function(x):
        jax.debug.callback(lambda: made.append(1))
        return x + 1

    row = measure_call(function, (np.zeros(3),), 3, 3, enough_seconds=seconds)
    jax.effects_barrier()
    warm_up = 1 if calls > 1 else 0
    assert (row["calls"], len(made)) == (calls, calls + warm_up)
    assert row["argument_bytes"] == row["output_bytes"] == 12


def test_a_random_batch_fits_the_models():
    batch = random_batch(2, views=3, targets=4, size=16)
    assert batch.inputs.images.shape == (2, 3, 16, 16, 3)
    assert batch.targets.cameras.shape == (2, 4)


def options(**changes) -> argparse.Namespace:
    given = models._parser().parse_args([])
    return argparse.Namespace(**{**vars(given), **changes})


def test_sizes_keep_the_published_proportions():
    at_128 = {name: models.sized_config(name, options(size=128)) for name in CONFIGS}
    assert at_128["LVSMEncoderDecoder"].num_latents == 3072 // 4
    assert [config.num_layers for config in at_128.values()] == [12, 24, 12, 24]
    quarter = [models.sized_config(name, options(layers_fraction=0.25)) for name in CONFIGS]
    assert [config.num_layers for config in quarter] == [3, 6, 3, 6]


def test_each_cell_is_measured_once():
    cells = models.plan(options(views=[8, 2], targets=[1, 8], at_once=[8, 8]))
    assert len(cells) == len(set(cells)) == 2 * 2 * 4 + 2
    assert [cell.targets_at_once for cell in cells[-2:]] == [0, 0]
    assert models.plan(options(at_once=[0, 0])) == models.plan(options(at_once=[8, 8]))[:-2]


def test_exponents_of_linear_and_quadratic_cost():
    rows = [
        {"architecture": name, "targets": 1, "views": v, "seconds": v**power, "flops": v}
        for name, power in (("EfficientLVSM", 1), ("LVSMDecoderOnly", 2))
        for v in (2, 4, 8)
    ]
    rows.append({**rows[-1], "views": 16, "skipped": "would take about 9 s"})
    linear, quadratic = models.exponents(rows)
    assert (linear["seconds"], quadratic["seconds"]) == pytest.approx((1, 2))
    assert quadratic["flops"] == pytest.approx(1)
    assert quadratic["views"] == [4, 8]


@pytest.mark.slow
def test_models_are_measured_and_drawn(tmp_path, capsys):
    output, plot = tmp_path / "models.json", tmp_path / "models.png"
    compared = ["EfficientLVSM", "LVSMDecoderOnly"]
    sizes = ["--size=32", "--width=64", "--layers-fraction=0.05", "--matmul-sizes=64"]
    cells = ["--views=2", "--targets=8", "--at-once", "2", "8", "--architectures", *compared]
    models.main([*sizes, *cells, "--repeats=1", f"--output={output}", f"--plot={plot}"])
    printed = capsys.readouterr().out
    report = json.loads(output.read_text())
    assert [row["architecture"] for row in report["cells"]] == [*compared, compared[1]]
    assert all(row["seconds"] > 0 and row["flops"] > 0 for row in report["cells"])
    alone, all_at_once = report["cells"][1:]
    assert (alone["targets_at_once"], all_at_once["targets_at_once"]) == (1, 0)
    assert alone["temporary_bytes"] < all_at_once["temporary_bytes"]
    assert "not the published size, layers, width" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")

    models.main([f"--read={output}"])
    assert capsys.readouterr().out == printed


def test_cells_that_would_take_too_long_are_named(tmp_path, capsys):
    arguments = ["--size=16", "--width=64", "--layers-fraction=0.05", "--matmul-sizes=64"]
    with pytest.raises(SystemExit, match="nothing to draw"):
        models.main([*arguments, "--max-seconds=1e-12", f"--plot={tmp_path / 'x.png'}"])
    assert "skipped: would take about 0 s" in capsys.readouterr().out


def test_a_missing_report_is_an_error_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*missing\.json"):
        models.main([f"--read={tmp_path / 'missing.json'}"])


@pytest.fixture(scope="module")
def tiny_export(tmp_path_factory):
    return save_tiny_export(tmp_path_factory.mktemp("exports") / "tiny")


@pytest.mark.long
@pytest.mark.slow
def test_the_cache_is_measured_and_drawn(tiny_export, rooms, tmp_path, capsys):
    clip = read_scene_names(rooms)[0]
    files = [f"--output={tmp_path / 'cache.json'}", f"--plot={tmp_path / 'cache.png'}"]
    sizes = ["--size=16", "--views", "1", "3", "--targets", "2", "--repeats=1", "--decoder-only=1"]
    more = ["--matmul-sizes", "64", f"--export={tiny_export}", "--scenes", clip]
    incremental.main([*sizes, *more, *files])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "cache.json").read_text())
    assert [row["views"] for row in report["rows"]] == [1, 3]
    assert all(row["add"] > 0 and row["render_2"] > row["floor_2"] for row in report["rows"])
    assert "decoder_only_2" in report["rows"][0] and "decoder_only_2" not in report["rows"][1]
    assert report["bytes_a_view"] == 2 * 1 * 4 * 32 * 4  # 2 · layers · tokens · width · bytes
    quality = {(row["views"], row["dtype"]): row for row in report["quality"]["rows"]}
    assert quality.keys() == {(v, d) for v in (1, 3) for d in incremental.CACHE_DTYPES}
    assert quality[3, "int8"]["difference"] is None or quality[3, "int8"]["difference"] > 30
    assert "int8: lost, dB" in printed and "decoder-only" in printed
    drawn = (tmp_path / "cache.png").read_bytes()
    (tmp_path / "cache.png").unlink()
    incremental.main([f"--read={tmp_path / 'cache.json'}", files[1]])
    assert capsys.readouterr().out == printed
    assert (tmp_path / "cache.png").read_bytes() == drawn


def read_scene_names(dataset):
    return [f"{dataset}/test:{key}" for key in SplitReader(dataset, "test").scenes.key]


def test_targets_of_a_quality_measurement_are_no_inputs(rooms):
    inputs, targets = incremental.split_photographs(open_scene(read_scene_names(rooms)[0]))
    names = [photograph.name for photograph in (*inputs, *targets)]
    assert len(set(names)) == len(names) and len(targets) == incremental.TARGETS
    assert names[0] == "frame-0"


def test_random_weights_have_no_quality(rooms):
    with pytest.raises(SystemExit, match="error: --scenes need --export"):
        incremental.main(["--scenes", read_scene_names(rooms)[0]])


def test_what_each_loss_adds_is_counted(capsys):
    losses.main(["--config=configs/re10k_256_repa.py", "--batch=1", "--count"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    _, _, mse, *others, not_due = [row.rstrip(" |").split()[-1] for row in rows]
    assert [mse, not_due] == ["0.0%", "0.0%"]
    # The published recipe's own: a teacher's and a projector's pass, and VGG-19's.
    assert [float(more.rstrip("%")) for more in others] == [12.1, 10.0, 21.0, 33.1]


def test_benchmarks_are_listed(capsys):
    benchmarks.main()
    listed = capsys.readouterr().out
    for name in ("data", "incremental", "losses", "models"):
        assert f"python -m benchmarks.{name} " in listed
    assert "The four models side by side" in listed


def test_a_model_is_measured_in_parts(tmp_path, capsys):
    """Renders, training steps and each attention kernel, with FLOPs of the whole batch."""
    output = tmp_path / "parts.json"
    sizes = ["--size=32", "--width=64", "--layers=1", "--matmul-sizes=64", "--batch=2"]
    cells = ["--architectures=EfficientLVSM", "--views=2", "--targets=3", "--repeats=1"]
    models.main([*sizes, *cells, "--measure", "attention", "render", "train", f"--output={output}"])
    rows = {row["what"]: row for row in json.loads(output.read_text())["cells"]}
    assert rows.keys() == {"attention xla", "attention blocked", "render", "train"}
    assert rows["attention xla"]["flops"] == 4 * 2 * (2 * 16) * (3 * 16) * 64
    assert rows["train"]["flops"] == 3 * rows["render"]["flops"]
    assert all(row["seconds"] > 0 and row["share_of_peak"] > 0 for row in rows.values())
    printed = capsys.readouterr().out
    assert "| attention blocked | Efficient-LVSM" in printed and "batch 2" in printed


def test_reports_of_before_are_read(capsys):
    """Those in the documentation, whose cells are all renders."""
    report = pathlib.Path(__file__).resolve().parents[2] / "docs" / "models_cpu.json"
    models.main([f"--read={report}"])
    assert "| Efficient-LVSM" in capsys.readouterr().out


def test_operations_are_counted_by_the_turns_of_loops():
    x = np.zeros((4, 5), np.float32)
    assert worlds.count_flops(lambda x: x.T * 2 + 1, x) == 40
    assert worlds.count_flops(lambda x: x @ x.T, x) == 2 * 4 * 4 * 5
    assert worlds.count_flops(lambda x: jax.lax.map(lambda row: row * row, x), x) == 20
    assert worlds.count_flops(lambda x: jax.lax.fori_loop(0, 7, lambda _, x: -x, x), x) == 147
    assert worlds.count_flops(jax.jit(lambda x: x.sum()), x) == 20

    def over_rows(x, count):
        return jax.lax.fori_loop(0, count, lambda i, total: total + x[i], jnp.zeros(5))

    assert worlds.count_flops(over_rows, x, jnp.int32(3)) > 4 * 5
    branches = [lambda x: x, lambda x: x * x * x]
    assert worlds.count_flops(lambda x: jax.lax.switch(1, branches, x), x) - 40 in range(5)


def test_loops_over_legs_and_groups_of_worlds_have_the_turns_assumed():
    """Read from where they come from; of loops over solids nobody knows them."""
    with pytest.raises(UserError, match=r"solids_at_once is 4, expected at least the 32 solids"):
        worlds_compiled.check_solids(WorldsConfig())
    worlds_compiled.check_solids(WorldsConfig(solids_at_once=32))

    def loop(where):
        return Instruction("while.1", "()", "while", f'metadata={{op_name="{where}"}}', "main")

    groups, legs = "jit(render_block)/while", "jit(render_block)/while/body/while/body/while"
    assert worlds_compiled.turns(3, loop(groups)) == 3
    assert worlds_compiled.turns(3, loop(legs)) == 2


@pytest.mark.slow
def test_the_stream_of_worlds_is_measured(monkeypatch, tmp_path, capsys):
    use_plain_worlds(monkeypatch)
    output = tmp_path / "worlds.json"
    fields = {"model.width": 16, "model.head_dim": 8, "model.num_layers": 1, "model.remat": "none"}
    fields |= {"data.image_height": 16, "data.input_counts": "(1,2)"}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = ["--config=configs/worlds_64.py", *flags, "--batch=2", f"--output={output}"]
    worlds.main([*command, "--repeats=1"])
    printed = capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert list(rows) == ["render", "draw", "step"]
    assert all(row["seconds"] > 0 and row["flops"] > 0 for row in rows.values())
    share = rows["render"]["seconds"] / 8 / rows["step"]["seconds"]  # steps_per_world is 8
    assert f"{share:.1%}" in printed
    worlds.main([*command, "--count"])
    assert "seconds" not in json.loads(output.read_text())["rows"]["step"]
