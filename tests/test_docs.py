"""Docs: links lead to files and headings, named files exist, and so do commands."""

import pathlib
import re

import pytest

from lvsm_jax.__main__ import COMMANDS

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PLACES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "docs/**/*.md",
    "experiments/**/*.md",
)
PAGES = sorted(page for place in PLACES for page in REPOSITORY.glob(place))

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
# A file in backticks, by its path from the top of the repository or from the page.
NAMED = re.compile(
    r"`((?:lvsm_jax|input_pipeline|configs|benchmarks|experiments|tests|docs|examples)/[\w./]+\.\w+)`"
)
COMMAND = re.compile(r"(?:^|`|bin/)lvsm ([a-z][\w-]*)", re.MULTILINE)


def anchors(page: pathlib.Path) -> set[str]:
    """Of a page's headings, as forges and the site make them."""
    headings = HEADING.findall(CODE.sub("", page.read_text()))
    texts = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).lower() for text in headings)
    return {re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    text = page.read_text()
    wrong = []
    for link in LINK.findall(CODE.sub("", text)):
        path, _, anchor = link.partition("#")
        if ":" in path:
            continue  # to another site
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong
    names = NAMED.findall(text)
    assert not [n for n in names if not (REPOSITORY / n).exists() | (page.parent / n).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_exist(page):
    assert set(COMMAND.findall(page.read_text())) <= COMMANDS.keys()
