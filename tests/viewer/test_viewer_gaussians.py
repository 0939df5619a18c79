"""What the viewer says of a model that it does not show."""

import pytest
from flax import nnx

import lvsm_jax
from input_pipeline.storage import SplitReader
from lvsm_jax.viewer.__main__ import main


def test_a_gs_lrm_is_refused_in_a_line(rooms, tmp_path):
    model = lvsm_jax.GSLRM(
        lvsm_jax.GSLRMConfig(num_layers=1, width=16, head_dim=8), rngs=nnx.Rngs(0)
    )
    lvsm_jax.save(model, tmp_path / "export")
    clip = f"{rooms}/test:{SplitReader(rooms, 'test').scenes.key[0]}"
    with pytest.raises(
        SystemExit, match=r"error: .*export is of a GSLRM, .* lvsm render --ply=FILE"
    ):
        main([clip, f"--weights={tmp_path / 'export'}"])
