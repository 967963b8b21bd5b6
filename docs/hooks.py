"""What mkdocs cannot do alone: show pages that live elsewhere in the repository, and the help of the commands.

Links are written as they work in the repository, relative to the file. Here they become those of the site.
"""

import os
import posixpath
import re
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benches/RESULTS.md": "results.md",
}
HELP = "<!-- help of the commands -->"


def on_files(files: Any, config: Any) -> Any:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    uri = page.file.src_uri
    source = next((path for path, name in PAGES.items() if name == uri), f"docs/{uri}")

    def link(match: re.Match[str]) -> str:
        path, _, anchor = match[1].partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not path or not (ROOT / target).is_file():
            return match[0]
        target = PAGES.get(target, target.removeprefix("docs/"))
        return f"]({posixpath.relpath(target, posixpath.dirname(uri))}{anchor and '#' + anchor})"

    markdown = re.sub(r"\]\(([^()\s:]+)\)", link, markdown)
    return markdown.replace(HELP, _help()) if HELP in markdown else markdown


def _help() -> str:
    """A section for each command with what `--help` prints."""
    from mdepth_fast.cli import _COMMANDS, main
    from mdepth_fast.cli.data import _VERBS

    os.environ.update(COLUMNS="100", NO_COLOR="1")
    sections = []
    for command in _COMMANDS:
        for words in [[command], *([command, verb] for verb in _VERBS if command == "data")]:
            text = StringIO()
            with redirect_stdout(text), suppress(SystemExit):
                main([*words, "--help"])
            sections.append(f"## {' '.join(words)}\n\n```\n{text.getvalue().strip()}\n```\n")
    return "\n".join(sections)
