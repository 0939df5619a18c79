"""The weights that come with the package: an export like any other, in `lvsm_jax/shipped/export`.

`lvsm_jax/shipped/README.md` is their model card.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from lvsm_jax.weights.packed import SCALES

# Of an installed package too: `pyproject.toml` names these files among the package's data.
SHIPPED = epath.Path(__file__).parent.parent / "shipped" / "export"


def introduce(description: Mapping[str, Any]) -> str:
    """One line on an export, of its `config.json`: name, size, pictures and inputs."""
    arrays = {n: said for n, said in description["arrays"].items() if not n.endswith(SCALES)}
    shapes = [re.search(r"\[(.*)\]", said)[1].split(",") for said in arrays.values()]
    parameters = sum(math.prod(map(int, shape)) for shape in shapes)
    data = description.get("config", {}).get("data", {})
    counts = data.get("input_counts") or [data.get("num_inputs", 2)]
    inputs = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else f"{counts[0]}"
    return (
        f"{description.get('name', 'weights without a name')} ({description['architecture']}, "
        f"{parameters / 1e6:.1f} M parameters, trained at {data.get('image_height', 256)} px with "
        f"{inputs} inputs)"
    )


def shipped_weights() -> str:
    """One line on the weights that come with the package."""
    description = json.loads((SHIPPED / "config.json").read_text())
    return f"{introduce(description)}, which come with lvsm_jax: {SHIPPED.parent / 'README.md'}"
