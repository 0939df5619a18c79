"""Colours as people name them."""

import re

from lvsm_jax.common.errors import UserError

Colour = tuple[int, int, int]  # red, green and blue of 255

WHITE: Colour = (255, 255, 255)
_COLOURS = {"white": WHITE, "black": (0, 0, 0), "grey": (128, 128, 128)}


def colour_of(text: str) -> Colour:
    """The colour of `white`, `black`, `grey`, `#rrggbb` or `r,g,b` of 255; UserError otherwise."""
    if text in _COLOURS:
        return _COLOURS[text]
    if hexadecimal := re.fullmatch("#?([0-9a-fA-F]{6})", text):
        return tuple(bytes.fromhex(hexadecimal[1]))
    parts = text.split(",")
    if len(parts) == 3 and all(p.isdecimal() and p.isascii() and int(p) <= 255 for p in parts):
        return tuple(map(int, parts))
    raise UserError(f"{text!r} is no colour: expected {', '.join(_COLOURS)}, #rrggbb or r,g,b")


def name_of(colour: Colour) -> str:
    """The text that `colour_of` reads: a name where it has one, else `#rrggbb`."""
    names = {known: name for name, known in _COLOURS.items()}
    return names.get(tuple(colour)) or "#" + bytes(colour).hex()
