"""Text from files does nothing to terminals and spreadsheets."""

import csv
import io
import subprocess
import sys

from lvsm_jax.common.text import plain_cell, printable
from lvsm_jax.training.run_log import csv_text


def test_what_a_terminal_would_obey_is_shown_as_escapes():
    assert printable("a\x1b[2Jb\rc\x07\u202ed") == r"a\x1b[2Jb\rc\x07\u202ed"
    assert printable("Bäume 木\nnext") == "Bäume 木\nnext"


def test_formulas_become_text_and_numbers_stay():
    for text in ("=1+1", "+cmd|' /C calc'!A0", "-x", "@SUM(A1)", "\t=1"):
        assert plain_cell(text) == f"'{text}"
    for value in ("-0.5", "+1e-3", "-inf", -1, 2.5, None, "key", ""):
        assert plain_cell(value) == value


def test_a_table_with_hostile_keys():
    rows = [{"scene": '=HYPERLINK("x")', "psnr": -1.5}, {"scene": "a/b,c\n", "psnr": "-2"}]
    read = list(csv.reader(io.StringIO(csv_text(["scene", "psnr"], rows))))
    assert read == [["scene", "psnr"], ['\'=HYPERLINK("x")', "-1.5"], ["a/b,c\n", "-2"]]


def test_errors_of_programs_are_printable(tmp_path):
    command = [sys.executable, "-m", "lvsm_jax", "describe", f"{tmp_path}/\x1b[31mx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "\\x1b[31mx" in done.stderr and "\x1b" not in done.stderr
