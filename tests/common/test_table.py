"""The printer of tables."""

from lvsm_jax.common.table import format_table

HEADER, ROWS = ["a", "number"], [["first", 1], ["b", 20], ["c", None]]


def test_markdown():
    assert format_table(HEADER, ROWS, markdown=True).splitlines() == [
        "| a     | number |",
        "| ----- | -----: |",
        "| first |      1 |",
        "| b     |     20 |",
        "| c     |      – |",
    ]


def test_plain_text():
    assert format_table(HEADER, ROWS).splitlines() == [
        "a      number",
        "-------------",
        "first       1",
        "b          20",
        "c           –",
    ]
    assert format_table(HEADER, ROWS, text=0).splitlines()[0] == "    a  number"
