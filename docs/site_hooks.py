"""What mkdocs does not do by itself: pages that lie outside of docs/, and links that lead there."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}  # page of the site: file of the repository
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Any, config: Any) -> Any:
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links are those of the repository: one that leaves docs/ leads to its page here, or to the repository."""
    name = page.file.src_uri
    source = ROOT / OUTSIDE.get(name, f"docs/{name}")
    pages = {source: page for page, source in OUTSIDE.items()}

    def lead(match: re.Match[str]) -> str:
        target = os.path.relpath((source.parent / match[1]).resolve(), ROOT)
        inside = pages.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if inside is None:
            kind = "tree" if (ROOT / target).is_dir() else "blob"
            return f"{config.repo_url}/{kind}/main/{target}{match[2] or ''}"
        return os.path.relpath(inside, os.path.dirname(name) or ".") + (match[2] or "")

    return LINK.sub(lead, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings name classes as those of transformers do, [`Name`]; the brackets are for its own builder."""
    return re.sub(r"\[(<code>[^<]*</code>)\]", r"\1", html) if page.file.src_uri == "api.md" else html
