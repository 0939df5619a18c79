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
    """One line on an export, of its `config.json`: name, size, pictures and inputs.

    What it does not say, as those of published weights or of version 0.1.0, is left out.
    """
    parts = [description["architecture"]]
    if arrays := description.get("arrays"):
        told = [said for name, said in arrays.items() if not name.endswith(SCALES)]
        shapes = [re.search(r"\[(.*)\]", said)[1].split(",") for said in told]
        parts.append(f"{sum(math.prod(map(int, s)) for s in shapes) / 1e6:.1f} M parameters")
    if data := description.get("config", {}).get("data"):
        counts = data.get("input_counts") or [data.get("num_inputs")]
        inputs = counts[0] if len({*counts}) == 1 else f"{min(counts)} to {max(counts)}"
        parts.append(f"trained at {data.get('image_height')} px with {inputs} inputs")
    return f"{description.get('name', 'weights without a name')} ({', '.join(parts)})"


def shipped_weights() -> str:
    """One line on the weights that come with the package."""
    description = json.loads((SHIPPED / "config.json").read_text())
    return f"{introduce(description)}, which come with lvsm_jax: {SHIPPED.parent / 'README.md'}"
