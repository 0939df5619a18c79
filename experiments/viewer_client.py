"""A visitor of the viewer without a browser, who speaks viser's protocol as its page does."""

import contextlib
import io
import logging
import math
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import viser
import zstandard
from PIL import Image
from scipy.spatial.transform import Rotation
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from lvsm_jax.common.errors import UserError

_quiet = logging.getLogger(f"{__name__}.connection")  # of one that is cut without a word
_quiet.setLevel(logging.CRITICAL)
_PART = 2**19  # bytes of a file in one message, as browsers send them
_WINDOW = (600, 400)  # width and height in pixels
# Messages by which the server moves a visitor: their field, and that of the camera.
_MOVES = {
    "SetCameraPositionMessage": ("position", "position"),
    "SetCameraLookAtMessage": ("look_at", "look_at"),
    "SetCameraUpDirectionMessage": ("position", "up_direction"),
    "SetCameraFovMessage": ("fov", "fov"),
}


class ViewerClient:
    """One visitor of the page at `url`, the link that `lvsm view` prints.

    Until it is closed it reads all that the server sends, in a thread, and keeps what the page
    shows: elements of the panel, notifications, the newest picture.
    """

    def __init__(self, url: str, *, origin: str | None = None, wait: float = 30.0):
        page, _, query = url.partition("/?")
        address = f"{page.replace('http', 'ws', 1)}/{'?' if query else ''}{query}"
        protocol = f"viser-v{viser.__version__}"
        self._connection = connect(
            address,
            subprotocols=[protocol],
            origin=origin,
            max_size=None,
            open_timeout=wait,
            logger=_quiet,
        )
        self._changed = threading.Condition()  # of what follows
        self._elements: dict[str, dict[str, Any]] = {}
        self.notifications: list[str] = []
        self.jpeg: bytes | None = None  # of the picture behind the scene
        self.pictures = 0  # how many were shown
        self.moved = 0  # how often the server moved the visitor, as on a path
        self._camera: dict[str, Any] | None = None  # that the page reported last
        self.closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Leaves the page."""
        self._connection.close()
        self._reader.join()

    def vanish(self) -> None:
        """Leaves without a word, as when a computer is closed."""
        with contextlib.suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)

    def send(self, kind: str, **fields: Any) -> None:
        """Sends any message, also one that no page would send."""
        self.send_raw(msgspec.msgpack.encode({"type": kind, **fields}))

    def send_raw(self, data: bytes | str) -> None:
        """Sends anything."""
        self._connection.send(data)

    def stand(self, position: Sequence[float], look_at: Sequence[float] = (0.0, 0.0, 0.0)) -> None:
        """Goes to a place on the page, whose up is z, and looks at another."""
        self._report(position=[*map(float, position)], look_at=[*map(float, look_at)])

    def elements(self, kind: str = "", option: str | None = None) -> list[dict[str, Any]]:
        """The panel's elements, of a kind of viser's and with an option or a label."""

        def says(props: dict[str, Any]) -> bool:
            return option in (None, props.get("label"), *props.get("options", ()))

        elements = list(self._elements.values())
        return [e for e in elements if kind in e["type"] and says(e["props"])]

    def texts(self) -> str:
        """All Markdown of the panel."""
        elements = self.elements("GuiMarkdownMessage")
        return "\n".join(str(element["props"].get("_markdown")) for element in elements)

    def press(self, option: str) -> None:
        """Presses a button, alone or in a group, by what is written on it."""
        if not (found := self.elements("GuiButton", option)):
            raise UserError(f"the page has no button {option!r}")
        alone = found[0]["type"] == "GuiButtonMessage"
        self.update(found[0]["uuid"], {"value": True if alone else option})

    def update(self, identity: str, updates: dict[str, Any]) -> None:
        """Sends what the browser sends for a used element."""
        self.send("GuiUpdateMessage", uuid=identity, updates=updates)

    def upload(self, name: str, content: bytes) -> None:
        """Uploads a file by the first button for it, in parts."""
        buttons = self.elements("GuiUploadButtonMessage")
        if not buttons:
            raise UserError("the page has no button for uploads")
        source, transfer = buttons[0]["uuid"], str(uuid.uuid4())
        parts = [content[i : i + _PART] for i in range(0, len(content), _PART)]
        ids = {"source_component_uuid": source, "transfer_uuid": transfer}
        about = {"mime_type": "application/zip", "part_count": len(parts)}
        self.send("FileTransferStartUpload", **ids, filename=name, **about, size_bytes=len(content))
        for i, part in enumerate(parts):
            self.send("FileTransferPart", **ids, part_index=i, content=part)

    def picture(self) -> np.ndarray | None:
        """The picture that the page shows, `[h, w, 3]` of bytes."""
        jpeg = self.jpeg
        return None if jpeg is None else np.asarray(Image.open(io.BytesIO(jpeg)))

    def wait_for(self, condition: Callable[[], Any], what: str, wait: float = 30.0) -> None:
        """Returns once the condition holds; TimeoutError if it takes longer."""
        with self._changed:
            if not self._changed.wait_for(condition, wait):
                raise TimeoutError(f"waited {wait:g} s for {what}; told: {self.notifications}")

    def wait_until_settled(self, quiet: float = 2.0, wait: float = 60.0) -> None:
        """Returns once no new picture came for `quiet` seconds."""
        end = time.monotonic() + wait
        while time.monotonic() < end:
            before = self.pictures
            time.sleep(quiet)
            if self.jpeg is not None and self.pictures == before:
                return
        raise TimeoutError(f"pictures still came after {wait:g} s")

    def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                raw = self._connection.recv()
                moved: dict[str, Any] = {}
                with self._changed:
                    for message in _messages(raw):
                        self._take(message, moved)
                    self.moved += bool(moved)
                    self._changed.notify_all()
                if moved and self._camera:  # a browser says that it has gone there
                    self._report(**moved)
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _report(self, **moved: Any) -> None:
        self._camera = (self._camera or camera_fields()) | moved
        ahead = np.subtract(self._camera["look_at"], self._camera["position"])
        ahead /= np.linalg.norm(ahead)
        right = np.cross(ahead, self._camera["up_direction"])
        right /= np.linalg.norm(right)
        rotation = Rotation.from_matrix(np.stack([right, np.cross(ahead, right), ahead], axis=1))
        wxyz = np.roll(rotation.as_quat(), 1).tolist()
        self.send("ViewerCameraMessage", **self._camera, wxyz=wxyz)

    def _take(self, message: dict[str, Any], moved: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "GuiUpdateMessage":
            element = self._elements.get(message["uuid"], {"props": {}})
            for name, value in message["updates"].items():
                (element if name == "value" else element["props"])[name] = value
        elif kind == "GuiRemoveMessage":
            self._elements.pop(message["uuid"], None)
        elif kind.startswith("Gui") and "props" in message:
            self._elements[message["uuid"]] = message
        elif kind == "NotificationShowMessage":
            props = message["props"]
            self.notifications.append(f"{props['title']}: {props['body']}")
        elif kind == "BackgroundImageMessage":
            self.jpeg, self.pictures = message["rgb_data"], self.pictures + 1
        elif kind in _MOVES and not message.get("initial"):
            theirs, ours = _MOVES[kind]
            moved[ours] = message[theirs]


def camera_fields() -> dict[str, Any]:
    """What a page says of its camera, but for where it looks from."""
    width, height = _WINDOW
    size = {"image_height": height, "image_width": width, "fov": math.radians(60)}
    return {"near": 0.01, "far": 1000.0, "up_direction": [0.0, 0.0, 1.0], **size}


def _messages(raw: bytes | str) -> list[dict[str, Any]]:
    """The messages of a packet: lengths, compressed MessagePack, then buffers aligned to 8."""
    if isinstance(raw, str):
        return []
    size, packed = (int.from_bytes(raw[i : i + 8], "little") for i in (0, 8))
    inner = zstandard.ZstdDecompressor().decompress(raw[16 : 16 + packed], max_output_size=size)
    packet, place, buffers = msgspec.msgpack.decode(inner), 16 + packed, []
    for length in packet["binaryBufferLengths"]:
        place += -place % 8
        buffers.append(raw[place : place + length])
        place += length
    return [_filled(message, buffers) for message in packet["messages"]]


def _filled(value: Any, buffers: Sequence[bytes]) -> Any:
    if isinstance(value, dict):
        if "__binary_index" in value:
            return buffers[value["__binary_index"]]
        return {name: _filled(inner, buffers) for name, inner in value.items()}
    return [_filled(inner, buffers) for inner in value] if isinstance(value, list) else value
