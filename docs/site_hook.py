"""What `make docs` adds to the pages in docs/.

- Files that a page links to outside of docs/ become part of the site, at their place in the
  repository; links to Python files show the file.
- The page of the config gets the fields of the sections' dataclasses, from their docstrings.
"""

import dataclasses
import importlib
import inspect
import pathlib
import posixpath
import re

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)([^)\s]*\))")
SECTIONS_MARK = "<!-- sections: on the site, the fields of the dataclasses -->"
SECTIONS = {
    "run": "lvsm_jax.common.config.RunConfig",
    "data": "lvsm_jax.common.config.DataConfig",
    "eval": "lvsm_jax.common.config.EvalConfig",
    "optimizer": "lvsm_jax.training.optimizer.OptimizerConfig",
    "loss": "lvsm_jax.training.losses.LossConfig",
    "repa": "lvsm_jax.training.repa.RepaConfig",
    "mesh": "lvsm_jax.parallel.mesh.MeshConfig",
    "processes": "lvsm_jax.parallel.processes.ProcessesConfig",
    "model": "lvsm_jax.models.efficient_lvsm.EfficientLVSMConfig",
    "model of LVSMDecoderOnly": "lvsm_jax.models.lvsm.LVSMDecoderOnlyConfig",
    "model of LVSMEncoderDecoder": "lvsm_jax.models.lvsm.LVSMEncoderDecoderConfig",
}


def source_of(file: File) -> str:
    """Where a page's file is in the repository."""
    path = pathlib.Path(file.abs_src_path)
    return path.relative_to(REPOSITORY).as_posix()


def target_of(source: str, link: str) -> str:
    """Path in the repository that a relative link in the file `source` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def in_site(path: str) -> str:
    """Where a file of the repository is in the site."""
    return path.removeprefix("docs/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files outside of docs/ that pages link to, and those that these link to."""
    new = [file for file in files if file.is_documentation_page()]
    while new:
        file = new.pop()
        source = source_of(file)
        for _, link, _ in LINK.findall(pathlib.Path(file.abs_src_path).read_text()):
            path = target_of(source, link)
            outside = not path.startswith(("docs/", "../")) and ":" not in link
            if outside and (REPOSITORY / path).is_file() and in_site(path) not in files.src_uris:
                added = File(path, str(REPOSITORY), config.site_dir, config.use_directory_urls)
                files.append(added)
                if added.is_documentation_page():
                    new.append(added)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site has them, and the fields of the config."""
    source = source_of(page.file)
    here = posixpath.dirname(in_site(source))

    def linked(match: re.Match) -> str:
        path = target_of(source, match[2])
        if ":" in match[2] or not (REPOSITORY / path).exists():
            return match[0]
        return match[1] + posixpath.relpath(in_site(path), here or ".") + match[3]

    markdown = LINK.sub(linked, markdown)
    if SECTIONS_MARK in markdown:
        markdown = markdown.replace(SECTIONS_MARK, config_reference())
    return markdown


def config_reference() -> str:
    """A table of fields for each section of a config."""
    tables = []
    for section, path in SECTIONS.items():
        module, _, name = path.rpartition(".")
        dataclass = getattr(importlib.import_module(module), name)
        sentences = {}
        for cls in reversed(dataclass.mro()):  # the subclass has the last word
            sentences |= _sentences(cls)
        rows = [
            f"| `{field.name}` | {_default(field)} | {sentences[field.name]} |"
            for field in dataclasses.fields(dataclass)
        ]
        summary = inspect.getdoc(dataclass).partition("\n\n")[0].replace("\n", " ")
        table = ["| field | default | |", "|---|---|---|", *rows]
        tables.append("\n".join([f"## {section}", "", summary, "", *table, ""]))
    return "\n".join(tables)


def _default(field: dataclasses.Field) -> str:
    return "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"


def _sentences(cls: type) -> dict[str, str]:
    """What the `Attributes:` section of a dataclass says of each field."""
    sections = griffe.Docstring(inspect.cleandoc(cls.__doc__ or "")).parse("google", warnings=False)
    return {
        attribute.name: attribute.description.replace("\n", " ").replace("|", "\\|")
        for part in sections
        if part.kind is griffe.DocstringSectionKind.attributes
        for attribute in part.value
    }
