"""What `make docs` adds to the pages in docs/.

- Files that a page links to outside of docs/ become part of the site, at their place in the
  repository; links to Python files show the file.
- The page of the config gets what `lvsm config --markdown` prints.
"""

import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from lvsm_jax.common.command_line import read_config_file
from lvsm_jax.programs.config import as_markdown, explain

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)([^)\s]*\))")
FIELDS_MARK = "<!-- fields: on the site, what `lvsm config --markdown` prints -->"
OTHER_MODELS = ("LVSMDecoderOnly", "LVSMEncoderDecoder", "GSLRM")


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
        if (REPOSITORY / path).is_dir():
            return match[1][1:-2]  # a folder of code, which the site does not show
        return match[1] + posixpath.relpath(in_site(path), here or ".") + match[3]

    markdown = LINK.sub(linked, markdown)
    if FIELDS_MARK in markdown:
        markdown = markdown.replace(FIELDS_MARK, config_reference())
    return markdown


def config_reference() -> str:
    """What `lvsm config --markdown` prints, and the fields of the other models."""
    fields = explain(read_config_file("configs/base.py"))
    for name in OTHER_MODELS:
        of_other = explain(read_config_file(f"configs/base.py:{name}"))
        fields += [f._replace(section=f"model of {name}") for f in of_other if f.section == "model"]
    return as_markdown(fields)
