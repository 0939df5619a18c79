"""What a dataset says of its transparent pictures: `alpha.json`, beside the records.

    {"background": "white", "composited": null, "transparent": true}

`background` is the colour that they are put on where nobody asks for another. `composited` is that
on which their colours lie already, null for straight ones. `transparent` says whether any picture
is: then its pixels of the object are known. Datasets of photographs have no such file.
"""

import dataclasses
import functools
import json

from absl import logging
from etils import epath

from input_pipeline.metadata import DatasetError
from lvsm_jax.common.colours import WHITE, colour_of, name_of
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import expand, read_json, write_text
from lvsm_jax.scenes.pictures import Alpha

ALPHA_FILE = "alpha.json"


@dataclasses.dataclass(frozen=True)
class DatasetAlpha:
    """How the transparent pictures of a dataset are read, and whether there are any."""

    alpha: Alpha
    transparent: bool

    def on(self, background: str) -> "DatasetAlpha":
        """The same on another colour, as a config names it; empty for the dataset's."""
        if not background:
            return self
        alpha = dataclasses.replace(self.alpha, background=colour_of(background))
        return dataclasses.replace(self, alpha=alpha)


def write_alpha(directory: epath.PathLike, stated: DatasetAlpha) -> None:
    """Writes the file."""
    composited = stated.alpha.composited
    content = {
        "background": name_of(stated.alpha.background),
        "composited": None if composited is None else name_of(composited),
        "transparent": stated.transparent,
    }
    write_text(expand(directory) / ALPHA_FILE, json.dumps(content, indent=1) + "\n")


def read_alpha(directory: epath.PathLike) -> DatasetAlpha | None:
    """What the dataset says; None where it says nothing, DatasetError where the file is damaged."""
    path = expand(directory) / ALPHA_FILE
    if not path.exists():
        return None
    try:
        content = read_json(path)
        composited, transparent = content.get("composited"), content.get("transparent")
        if not isinstance(transparent, bool) or not isinstance(content.get("background"), str):
            raise DatasetError("expected a colour 'background', and 'transparent' true or false")
        if not isinstance(composited, str | None):
            raise DatasetError(f"'composited' is {composited!r:.60}, expected a colour or null")
        lies_on = None if composited is None else colour_of(composited)
        return DatasetAlpha(Alpha(colour_of(content["background"]), lies_on), transparent)
    except UserError as error:
        raise DatasetError(f"{path}: {error}") from error


def alpha_of(directory: epath.PathLike, background: str) -> Alpha | None:
    """How a dataset's transparent pictures are read on a config's `background`.

    None where neither says: see `default_alpha`.
    """
    stated = read_alpha(directory)
    if stated is None:
        return Alpha(colour_of(background)) if background else None
    return stated.on(background).alpha


def stated_background(directory: epath.PathLike, background: str) -> str | None:
    """The name of the colour that a dataset's pictures are put on, as exports and scores have it.

    None where neither the config's `background` nor the dataset says one.
    """
    alpha = alpha_of(directory, background)
    return None if alpha is None else name_of(alpha.background)


@functools.cache  # said once in each process
def default_alpha() -> Alpha:
    """White, said out loud: for transparent pictures of which nobody said what they are put on."""
    logging.warning(
        "the dataset has transparent pictures and states no background: they are put on white "
        "(--config.data.background)"
    )
    return Alpha(WHITE)
