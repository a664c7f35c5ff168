"""The site, without mkdocs: every page is in the navigation, every link and anchor of a page leads somewhere."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

import latentlm

DOCS = REPOSITORY / "docs"
OUTSIDE = {"contributing.md", "changelog.md"}  # made from files of the repository by docs/site_hooks.py
PAGES = sorted(
    path for place in ("*.md", "docs/**/*.md", "eval/*.md", "examples/*.md") for path in REPOSITORY.glob(place)
)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(#[^)\s]*)?\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


class Loader(yaml.SafeLoader):
    """Of mkdocs.yml, whose functions are of no interest here."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def leaves(item: object) -> list[str]:
    """The pages of a navigation."""
    if isinstance(item, str):
        return [item]
    parts = item.values() if isinstance(item, dict) else item if isinstance(item, list) else []
    return [leaf for part in parts for leaf in leaves(part)]


def anchors(path: Path) -> set[str]:
    """Of each heading, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,6} +(.+?) *$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading).lower() for heading in headings]
    return {"#" + re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def test_every_page_is_in_the_navigation():
    configuration = yaml.load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    pages = leaves(configuration["nav"])
    assert len(pages) == len(set(pages)) and configuration["strict"]
    assert set(pages) == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | OUTSIDE


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_and_anchors_lead_somewhere(path: Path):
    text, broken = CODE.sub("", path.read_text(encoding="utf-8")), []
    for target, anchor in LINK.findall(text):
        other = (path.parent / target).resolve() if target else path
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(target + anchor)
    assert not broken


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [name for name in latentlm.__all__ if not re.search(rf"^::: .*\.{name}$", text, re.MULTILINE)] == []
