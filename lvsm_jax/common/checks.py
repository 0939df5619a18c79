"""Checks of a configuration's fields; each raises UserError with the field and both values."""

from collections.abc import Collection
from typing import Any

from lvsm_jax.common.errors import UserError


def check_field(section: str, config: Any, field: str, fits: bool, expected: str) -> None:
    """Raises UserError, with the field's value and what is expected, unless it fits."""
    if not fits:
        raise UserError(f"{section}.{field} is {getattr(config, field)}, expected {expected}")


def check_at_least(section: str, config: Any, **least: int | float) -> None:
    """Raises UserError unless each of these fields is its least value or more; NaN is less."""
    for field, smallest in least.items():
        fits = getattr(config, field) >= smallest
        check_field(section, config, field, fits, f"at least {smallest}")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raises UserError, with the full name of the field, unless its value is one of the choices."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}, expected one of {tuple(choices)}")
