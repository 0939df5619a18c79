"""What a visitor's browser may send, and how it is checked.

viser takes any message that it knows, among them such as only its own server sends, and sets any
attribute of an element of the panel. Of these our page needs five; all others are refused, and so
are values that the page's elements could not have:

    ViewerCameraMessage       where the visitor is              finite numbers
    GuiUpdateMessage          an element of the panel is used   `check_update`
    SceneNodeClickMessage     a photograph in 3D is clicked     known by name, else ignored
    FileTransferStartUpload   an upload begins                  size, in the server
    FileTransferPart          a part of it                      of an upload that has begun
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import viser

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.text import printable, shortened

MAX_PART = 4 * 2**20  # bytes; browsers send files in parts of half a MiB

_Id = Annotated[str, msgspec.Meta(max_length=100)]
_Text = Annotated[str, msgspec.Meta(max_length=1000)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # as far as a browser counts
_Pixels = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_Pair = tuple[float, float]
_Vector = tuple[float, float, float]
_Part = Annotated[bytes, msgspec.Meta(max_length=MAX_PART)]
_Number = int | float | None
_Value = bool | int | float | _Text | Annotated[list[float], msgspec.Meta(max_length=100)]


class _Message(msgspec.Struct, tag_field="type", forbid_unknown_fields=True):
    pass


class _Camera(_Message, tag="ViewerCameraMessage"):
    wxyz: tuple[float, float, float, float]
    position: _Vector
    fov: float
    near: float
    far: float
    image_height: _Pixels
    image_width: _Pixels
    look_at: _Vector
    up_direction: _Vector

    def __post_init__(self) -> None:
        numbers = (*self.wxyz, *self.position, *self.look_at, *self.up_direction)
        if not all(map(math.isfinite, (*numbers, self.fov, self.near, self.far))):
            raise ValueError("the browser's camera is not finite")
        if not 1e-3 < math.hypot(*self.wxyz) < 1e3:
            raise ValueError("the browser's camera has no direction")


class _Update(_Message, tag="GuiUpdateMessage"):
    uuid: _Id
    updates: Annotated[dict[_Id, _Value], msgspec.Meta(max_length=4)]


class _Click(_Message, tag="SceneNodeClickMessage"):
    name: Annotated[str, msgspec.Meta(max_length=10_000)]
    instance_index: _Count | None
    ray_origin: _Vector
    ray_direction: _Vector
    screen_pos: _Pair
    modifier: _Id | None
    owner: _Id = ""


class _Start(_Message, tag="FileTransferStartUpload"):
    source_component_uuid: _Id
    transfer_uuid: _Id
    filename: _Text
    mime_type: _Text
    part_count: _Count
    size_bytes: _Count


class _FilePart(_Message, tag="FileTransferPart"):
    source_component_uuid: _Id | None
    transfer_uuid: _Id
    part_index: _Count
    content: _Part


_decoder = msgspec.msgpack.Decoder(_Camera | _Update | _Click | _Start | _FilePart)


def check_message(raw: bytes | str) -> None:
    """Raises UserError, in one line, unless this is a message that our page sends."""
    if isinstance(raw, str):
        raise UserError("text, expected a message of the page")
    try:
        _decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        line = shortened(printable(str(error)).replace("\n", " "), 200)
        raise UserError(f"no message of the page: {line}") from None


def check_update(handle: Any, updates: Mapping[str, Any]) -> None:
    """Raises UserError unless a visitor may set viser's `handle` of the panel to such values."""
    name = type(handle).__name__
    if updates.keys() != {"value"}:
        raise UserError(f"{name}: only its value may be set")
    if getattr(handle, "disabled", False):
        raise UserError(f"{name} cannot be used now")
    value = updates["value"]
    if not _may_be(handle, value):
        raise UserError(f"{name} cannot be {shortened(printable(repr(value)), 80)}")


def is_button(handle: Any) -> bool:
    """Whether it does something whenever it is used."""
    return isinstance(handle, viser.GuiButtonHandle | viser.GuiButtonGroupHandle)


def _may_be(handle: Any, value: Any) -> bool:
    match handle:
        case viser.GuiUploadButtonHandle():  # its value comes as a file
            return False
        case viser.GuiButtonHandle():
            return value is True
        case viser.GuiCheckboxHandle():
            return isinstance(value, bool)
        case viser.GuiDropdownHandle() | viser.GuiButtonGroupHandle():
            return isinstance(value, str) and value in handle.options
        case viser.GuiSliderHandle() | viser.GuiNumberHandle():
            return _is_within(value, handle.min, handle.max)
        case viser.GuiMultiSliderHandle():
            numbers = isinstance(value, list | tuple) and len(value) == len(handle.value)
            return numbers and all(_is_within(v, handle.min, handle.max) for v in value)
        case viser.GuiTextHandle():
            return isinstance(value, str) and value.isprintable()
    return False


def _is_within(value: Any, least: _Number, most: _Number) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    slack = 1e-6 * max(abs(least or 0), abs(most or 0))  # browsers add up steps in floating point
    least, most = (-1e300 if least is None else least), (1e300 if most is None else most)
    return least - slack <= value <= most + slack  # of NaN it is false
