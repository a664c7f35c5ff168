"""Pages and comments: a word has one meaning, the source of each design is named, and files that are named exist."""

import ast
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

PAGES = sorted(
    path
    for place in ("*.md", "docs/**/*.md", "examples/*.md", "hub_configs/*/README.md", "eval/**/*.md")
    for path in REPOSITORY.glob(place)
)
TEXTS = PAGES + sorted(
    path
    for place in ("src/**/*.py", "examples/**/*", "benchmarks/*.py", "hub_configs/*/*.yaml", "CITATION.cff")
    for path in REPOSITORY.glob(place)
    if path.is_file() and path.suffix in (".py", ".sh", ".yaml", ".cff")
)
SOURCES = sorted((REPOSITORY / "src").rglob("*.py"))

UNCLEAR = {
    r"\bthe specification\b": "a reader has none: say what the target or the design is",
    r"\b(the|a|this) seed's\b|\bagainst the seed\b|\bthe seeds\b": "a seed is a number that random draws start from",
    r"(?<!-)-seed\b(?!ed)": "configurations of an original design are called -original",
    r"\|\s*asked\s*\|": "the heading of a target is `target`, with whose it is",
    r"\bby hand, in no test\b": "pages do not tell how the work was done",
}
"""Regular expressions of words in a meaning that they do not have here, and what to write."""

VAGUE = {"found", "given", "kept", "turned"}
"""Names of variables that say how a value was got and not what it is."""


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_words_have_one_meaning(path: Path):
    text = path.read_text(encoding="utf-8")
    for pattern, advice in UNCLEAR.items():
        places = [text.count("\n", 0, match.start()) + 1 for match in re.finditer(pattern, text, re.IGNORECASE)]
        assert not places, f"{relative(path)}, lines {places}: {advice}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_variables_are_nouns(path: Path):
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.id))
        elif isinstance(node, ast.arg):
            names.append((node.lineno, node.arg))
    assert not [f"line {line}: {name}" for line, name in names if name in VAGUE]


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_files_that_a_page_names_exist(path: Path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|examples|eval|benchmarks|hub_configs|docs)/[\w./-]+\.\w+)`", text)
    for folder, rest in re.findall(r"`(src/latentlm/\w+/)[\w./-]+\.py`((?:, `\w+\.py`)+)", text):
        named += [folder + name for name in re.findall(r"`(\w+\.py)`", rest)]  # beside the one before
    assert not [name for name in named if not (REPOSITORY / name).exists()]


@pytest.mark.parametrize(
    ("author", "page"),
    [
        ("yiphei/yif-AI", "ar-encoder-decoder"),
        ("yiphei/yif-AI", "parallel-encoder-decoder"),
        ("yiphei/yif-AI", "learned-dropout"),
        ("yiphei/yif-AI", "decoder-only"),
        ("dleemiller/Encodzall", "encodzall"),
        ("OilProducts/abstractinator", "abstractinator"),
        ("lemonhead07/LoopOS", "fsq-tokenizer"),
    ],
)
def test_the_source_of_a_design_is_named(author: str, page: str):
    begin = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")[:2000]
    assert f"(https://github.com/{author})" in begin and f"by {author.split('/')[0]}" in " ".join(begin.split())
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"https://github.com/{author}" in citation and f"alias: {author.split('/')[0]}" in citation
