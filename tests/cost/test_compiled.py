"""What the compilers make of a small training step stays as it is: kernels, bytes, collectives.

A change that costs passes over memory fails here, long before it meets an accelerator. What a
change is meant to do is recorded by

    python -m tests.cost.test_compiled

which needs both compilers: pip install -c constraints.txt -e '.[cuda,tpu]'.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import pytest

from lvsm_jax.common.command_line import read_config_file
from lvsm_jax.cost import hlo
from lvsm_jax.cost.kernels import kernels, totals
from lvsm_jax.cost.topology import compile_case, topology_mesh
from lvsm_jax.models.attention import attention_with_lse
from lvsm_jax.programs.aot import read_case

RECORD = pathlib.Path(__file__).with_name("compiled.json")
CASES = {"h100": "h100:1x2", "v5e": "v5e:2x2"}
EXTRAS = {"h100": "cuda", "v5e": "tpu"}
# Packages whose versions decide what is compiled.
PACKAGES = {
    "h100": ("jax", "jax-cuda12-plugin", "nvidia-cudnn-cu12"),
    "v5e": ("jax", "libtpu"),
}
TOLERANCE = 0.02


def versions(name: str) -> dict[str, str] | None:
    """Versions of what compiles for these devices; None where it is not installed."""
    try:
        return {package: importlib.metadata.version(package) for package in PACKAGES[name]}
    except importlib.metadata.PackageNotFoundError:
        return None


def compile_small_step(name: str) -> dict:
    """Two layers of the published step without loss networks, over two or four devices."""
    overrides = ["--config.model.num_layers=2", "--config.data.image_height=128"]
    overrides += ["--config.loss.perceptual=0"]
    given = argparse.Namespace(topology=CASES[name], mesh="-1,2,1", batch=4, render=False)
    config = read_config_file("configs/re10k_256.py", overrides)
    case = read_case(given, config)
    mesh = topology_mesh(case.topology, case.mesh)
    with jax.default_matmul_precision("default"):  # fused attention takes bfloat16 at no other
        compiled = compile_case(case, mesh)
    text = compiled.as_text()
    return {
        "versions": versions(name),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "kinds": {
            kind: {"runs": total.runs, "flops": total.flops, "bytes": total.bytes}
            for kind, total in totals(kernels(text), case.chip).items()
        },
        "kernels": hlo.kernels(text),
        "collectives": sorted(
            [c.kind, c.dtype, c.group, c.times, c.payload] for c in hlo.collectives(text)
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_compiled_step_is_as_recorded(name, monkeypatch):
    monkeypatch.chdir(RECORD.parents[2])
    found, recorded = versions(name), json.loads(RECORD.read_text())[name]
    if found is None:
        pytest.skip(
            f"no compiler for {name}: pip install -c constraints.txt -e '.[{EXTRAS[name]}]'"
        )
    if found != recorded["versions"]:
        pytest.skip(f"recorded with {recorded['versions']}, here is {found}: record it anew")
    now = compile_small_step(name)
    again = "python -m tests.cost.test_compiled records what was meant"
    assert now["kernels"] == recorded["kernels"], again
    assert now["collectives"] == recorded["collectives"], again
    assert now["temporaries"] == pytest.approx(recorded["temporaries"], rel=TOLERANCE), again
    assert now["kinds"].keys() == recorded["kinds"].keys(), again
    for kind, total in now["kinds"].items():
        assert total == pytest.approx(recorded["kinds"][kind], rel=TOLERANCE), f"{kind}: {again}"


@pytest.mark.parametrize("some", [False, True])
def test_cudnn_gives_its_float32_log_sum_exp(some):
    """Traced as for a GPU: JAX's public function returns it in the dtype of the keys."""
    if versions("h100") is None:
        pytest.skip(
            f"no compiler for h100: pip install -c constraints.txt -e '.[{EXTRAS['h100']}]'"
        )
    x = jax.ShapeDtypeStruct((2, 128, 12, 64), jnp.bfloat16)
    lengths = jax.ShapeDtypeStruct((2,), jnp.int32) if some else None
    attend = functools.partial(attention_with_lse, implementation="cudnn")
    out, lse = jax.eval_shape(lambda x, lengths: attend(x, x, x, lengths=lengths), x, lengths)
    assert (out.shape, out.dtype) == ((2, 128, 12, 64), jnp.bfloat16)
    assert (lse.shape, lse.dtype) == ((2, 128, 12), jnp.float32)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    for name in CASES:
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record[name] = compile_small_step(name)
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        print(f"wrote what {name} is", flush=True)
