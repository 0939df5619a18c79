"""Names for the leaves of a pytree, such as `decoder.mlp.up.kernel`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.tree_util import KeyPath


def leaf_name(path: KeyPath) -> str:
    """Dotted attribute names; the `value` inside a Flax variable is left out."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def named_leaves(tree: Any) -> dict[str, Any]:
    """All leaves of the tree by name."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function also gets the leaf's name, as its first argument."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(leaf_name(path), *leaves), tree, *rest
    )


def from_named(template: Any, leaves: Mapping[str, Any]) -> Any:
    """A tree of the template's structure with the leaves of these names."""
    return map_named(lambda name, _: leaves[name], template)
