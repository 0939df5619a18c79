"""What a visitor's browser may send: each kind of message, and what is refused of it."""

import random

import msgspec
import pytest

from lvsm_jax.common.errors import UserError
from tests.fuzz.mutations import mutations

viser = pytest.importorskip("viser")
from viser import _messages as theirs  # noqa: E402

from lvsm_jax.viewer.messages import MAX_PART, check_message, check_update  # noqa: E402

NUMBERS = [0.0, 0.5, 1.0]
IDS = {"source_component_uuid": "a", "transfer_uuid": "b"}
SOUND = {
    "ViewerCameraMessage": {
        "wxyz": [1, 0.0, 0.0, 0.0],
        "position": NUMBERS,
        "fov": 1.0,
        "near": 0.01,
        "far": 1000,
        "image_height": 400,
        "image_width": 600,
        "look_at": NUMBERS,
        "up_direction": NUMBERS,
    },
    "GuiUpdateMessage": {"uuid": "a", "updates": {"value": True}},
    "SceneNodeClickMessage": {
        "name": "/photographs/00",
        "instance_index": None,
        "ray_origin": NUMBERS,
        "ray_direction": NUMBERS,
        "screen_pos": [0.5, 0.5],
        "modifier": None,
        "owner": "1",
    },
    "FileTransferStartUpload": {
        **IDS,
        "filename": "a.zip",
        "mime_type": "",
        "part_count": 1,
        "size_bytes": 3,
    },
    "FileTransferPart": {**IDS, "part_index": 0, "content": b"abc"},
}


def packed(kind: str, fields: dict) -> bytes:
    return msgspec.msgpack.encode({"type": kind, **fields})


def refusal(raw) -> str:
    with pytest.raises(UserError) as error:
        check_message(raw)
    text = str(error.value)
    assert "\n" not in text and len(text) < 300 and text.isprintable()
    return text


@pytest.mark.parametrize("kind", SOUND)
def test_what_the_page_sends_is_what_viser_reads(kind):
    raw = packed(kind, SOUND[kind])
    check_message(raw)
    assert type(theirs.Message.deserialize(raw)).__name__ == kind


@pytest.mark.parametrize("kind", SOUND)
def test_what_viser_needs_is_there(kind):
    for field in SOUND[kind]:
        raw = packed(kind, {name: value for name, value in SOUND[kind].items() if name != field})
        if field == "owner":
            check_message(raw)
            assert theirs.Message.deserialize(raw).owner == ""
        else:
            assert f"missing required field `{field}`" in refusal(raw)


def test_no_other_message_of_viser_is_let_through():
    """Neither what it would act on, nor what only its server sends."""
    kinds = {kind.__name__ for kind in theirs.Message.get_subclasses()}
    assert {"ShareUrlRequest", "GuiFormDirtyMessage", "RunJavascriptMessage"} < kinds
    for kind in kinds - SOUND.keys():
        assert "Invalid value" in refusal(packed(kind, {}))


@pytest.mark.parametrize("kind", SOUND)
def test_values_of_another_type_or_size_are_refused(kind):
    nested: list = []
    for _ in range(3000):
        nested = [nested]
    odd = ["x", "x" * 20_000, None, -1, 2**60, 2**63, float("nan"), float("inf"), [], [[]], {}]
    odd += [{"a": {}}, [float("nan")] * 3, [1e400] * 3, ["x"] * 3, [0.0] * 2, [0.0] * 1000, b"x"]
    odd += [True, "\x1b[31m\n" * 10]
    for field in SOUND[kind]:
        left = {name: value for name, value in SOUND[kind].items() if name != field}
        accepted = 0
        for value in odd:
            try:
                check_message(packed(kind, left | {field: value}))
                accepted += 1
            except UserError as error:
                text = str(error)
                assert "\n" not in text and len(text) < 300 and text.isprintable()
        assert accepted < len(odd) / 3, field
    refusal(packed(kind, SOUND[kind] | {"surplus": 1}))
    refusal(packed(kind, SOUND[kind] | {"excluded_self_client": 0}))


def test_cameras_are_finite():
    camera = SOUND["ViewerCameraMessage"]
    for field in ("fov", "near", "far"):
        assert "not finite" in refusal(packed("ViewerCameraMessage", camera | {field: 1e999}))
    for field in ("wxyz", "position", "look_at", "up_direction"):
        value = [float("nan"), *camera[field][1:]]
        assert "not finite" in refusal(packed("ViewerCameraMessage", camera | {field: value}))
    for size in (0, 10**6):
        refusal(packed("ViewerCameraMessage", camera | {"image_width": size}))
    for wxyz in ([0.0] * 4, [1e300, 0.0, 0.0, 1e300], [1e-300] * 4):
        assert "no direction" in refusal(packed("ViewerCameraMessage", camera | {"wxyz": wxyz}))


def test_parts_have_a_size():
    part = SOUND["FileTransferPart"]
    check_message(packed("FileTransferPart", part | {"content": bytes(MAX_PART)}))
    refusal(packed("FileTransferPart", part | {"content": bytes(MAX_PART + 1)}))


def test_what_is_no_message_is_a_line():
    deep = b"\x91" * 100_000
    for raw in (b"", b"\xc1", b"\x80", b"[]", deep, b"\x81\xa4type" + deep, b"\xdf" + b"\xff" * 4):
        refusal(raw)
    refusal(msgspec.msgpack.encode([1, 2]))
    refusal(msgspec.msgpack.encode({"type": 3}))
    refusal("text")


@pytest.mark.parametrize("kind", SOUND)
def test_damaged_messages(kind):
    """Either refused in a line, or read by viser without an error."""
    rng, refused = random.Random(0), 0
    damaged = mutations(packed(kind, SOUND[kind]), rng)
    for _ in range(600):
        name, raw = next(damaged)
        try:
            check_message(raw)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 300, name
            refused += 1
            continue
        assert type(theirs.Message.deserialize(raw)).__name__ in SOUND
    assert refused > 200


# Elements of the panel.


@pytest.fixture(scope="module")
def gui():
    """Of a server that nobody visits."""
    server = viser.ViserServer("127.0.0.1", 0, verbose=False)
    yield server.gui
    server.stop()


def test_an_element_takes_what_it_can_have(gui):
    may = [
        (gui.add_button("b"), [True], [False, 1, "x", None]),
        (gui.add_checkbox("c", True), [True, False], [1, "x", None, []]),
        (
            gui.add_dropdown("d", ["orbit", "wobble"]),
            ["orbit", "wobble"],
            ["/etc/passwd", "orbit.json", "", None, True, 0, ["orbit"], {}],
        ),
        (gui.add_button_group("g", ["Add", "Remove"]), ["Add"], ["add", "", 1, None]),
        (
            gui.add_slider("s", 0.1, 4.0, 0.1, 1.0),
            [0.1, 1, 4.0, 4.0000001],
            [0, 4.1, float("nan"), float("inf"), -1e300, 10**400, "1", True, None, [1.0]],
        ),
        (gui.add_number("n", 3), [7, -1e9], [float("nan"), "7", True]),
        (
            gui.add_multi_slider("m", 0, 10, 1, (1, 5)),
            [[1, 2], (0, 10)],
            [[1], [1, 11], [1, 2, 3], 1, ["1", "2"]],
        ),
        (gui.add_text("t", "x"), ["", "a text"], ["a\nb", "\x1b[31m", 1, None]),
        (gui.add_upload_button("u"), [], [True, b"x", {"name": "x"}]),
        (gui.add_rgb("r", (1, 2, 3)), [], [[1, 2, 3]]),  # until there is a need
    ]
    for handle, good, bad in may:
        for value in good:
            check_update(handle, {"value": value})
        for value in bad:
            with pytest.raises(UserError, match=type(handle).__name__):
                check_update(handle, {"value": value})


def test_nothing_but_the_value_is_set(gui):
    """Whatever it is: viser would set any attribute, such as the functions that are called."""
    handle = gui.add_checkbox("c", True)
    for name in ("update_cb", "removed", "is_button", "sync_cb", "props", "options", "__class__"):
        for updates in ({name: True}, {"value": True, name: True}):
            with pytest.raises(UserError, match="only its value"):
                check_update(handle, updates)
    with pytest.raises(UserError, match="only its value"):
        check_update(handle, {})


def test_what_is_disabled_cannot_be_used(gui):
    handle = gui.add_button("b", disabled=True)
    with pytest.raises(UserError, match="cannot be used now"):
        check_update(handle, {"value": True})
    check_update(gui.add_button("b"), {"value": True})
