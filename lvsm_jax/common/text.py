"""Text from files, as it may be shown: names and messages may hold anything."""


def printable(text: str) -> str:
    """The text, with control characters, and others that a terminal obeys, as escapes.

    Lines stay lines.
    """
    return "\n".join(
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        for line in text.replace("\r\n", "\n").split("\n")
    )


def shortened(text: object, length: int = 300) -> str:
    """The beginning of a text, such as a library's message, that may quote the file at length."""
    text = str(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def plain_cell(value: object) -> object:
    """A cell of a table, which spreadsheets do not take for a formula: then with an apostrophe.

    Numbers stay numbers, also as text.
    """
    if not (isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
