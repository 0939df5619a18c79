"""The weights that come with the package: an export like any other, in `lvsm_jax/shipped/export`.

`lvsm_jax/shipped/README.md` is their model card.
"""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from lvsm_jax.weights.packed import SCALES

# Of an installed package too: `pyproject.toml` names these files among the package's data.
SHIPPED = epath.Path(__file__).parent.parent / "shipped" / "export"


def introduce(description: Mapping[str, Any], unnamed: str = "weights without a name") -> str:
    """One line on an export, of its `config.json`: name, size, and what it was trained on.

    `unnamed` stands where it has no name. What else it does not say, as those of published weights
    or of version 0.1.0, is left out.
    """
    parts = [description["architecture"]]
    if arrays := description.get("arrays"):
        told = [said for name, said in arrays.items() if not name.endswith(SCALES)]
        shapes = [re.findall(r"\d+", re.search(r"\[(.*)\]", said)[1]) for said in told]
        parts.append(f"{sum(math.prod(map(int, s)) for s in shapes) / 1e6:.1f} M parameters")
    if data := training_data(description):
        counts = input_counts(data) or ["unknown"]
        inputs = counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        trained = f"trained{_trained_on(data)} at {data.get('image_height')} px"
        step = description.get("step")
        more = "more steps" if description["config"].get("init_from") else "steps"
        steps = "" if step is None else f" for {step:,} {more}"
        parts.append(f"{trained} with {inputs} inputs{steps}")
    return f"{description.get('name', unnamed)} ({', '.join(parts)})"


def training_data(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """Section `data` of the config that an export was trained with; empty where it says none."""
    config = description.get("config")
    data = config.get("data") if isinstance(config, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def input_counts(data: Mapping[str, Any]) -> list[int]:
    """The numbers of inputs that a section `data` trains with, in order, each once."""
    counts = data.get("input_counts") or [data.get("num_inputs")]
    return sorted({count for count in counts if count})


def _trained_on(data: Mapping[str, Any]) -> str:
    """Worlds, datasets, or both, as the config's section `data` says."""
    share, path = data.get("worlds_share", 0), data.get("path")
    names = ["worlds"] if share > 0 else []
    if share < 1 and path:
        names += [epath.Path(one).name for one in (path, *(data.get("mix") or ()))]
    return f" on {' and '.join(names)}" if names else ""


def weights_line(weights: str | os.PathLike, description: Mapping[str, Any]) -> str:
    """One line on the export in folder `weights`, which describes itself so: what a user reads."""
    line = f"weights: {introduce(description, unnamed=os.fspath(weights))}"
    if epath.Path(weights) == SHIPPED:
        return f"{line}, which come with lvsm_jax: {SHIPPED.parent / 'README.md'}"
    return line if training_data(description) else f"{line}; it does not say what it was trained on"
