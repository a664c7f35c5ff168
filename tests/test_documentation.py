"""Pages and comments: a word has one meaning, the source of each design is named, and files that are named exist."""

import ast
import importlib
import re
import shlex
from pathlib import Path
from textwrap import dedent, indent

import pytest
from conftest import REPOSITORY

from latentlm.cli import COMMANDS

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


@pytest.mark.parametrize(
    "page",
    ["ar-encoder-decoder", "parallel-encoder-decoder", "learned-dropout", "decoder-only", "encodzall", "abstractinator",
     "fsq-tokenizer"],
)  # fmt: skip
def test_the_page_of_a_design_is_whole(page: str):
    """A picture, equations with shapes, a recipe, results, papers, and last the deviations."""
    text = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    parts = ("](figures/", "```\n", "latentlm.train hub_configs/", "](results/", "\n## Papers\n")
    assert [part for part in parts if part not in text] == [] and re.search(r"\([BR], \w+(, \w+)?\)", text)
    assert re.findall(r"^## (\w+)", text, re.MULTILINE)[-1] == "Deviations"


FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^ {4}((?:python|bash|make|latentlm|accelerate launch) .*)", re.MULTILINE)
PLACES = re.compile(r"(?:examples|eval|benchmarks|hub_configs|docs|tests)/[\w./-]+")


def commands(text: str) -> list[list[str]]:
    """The words of each command that a page shows, indented or in a block of plain text or of a shell."""
    text = text.replace("\\\n", " ")  # lines that go on
    shells = [dedent(code) for _, language, code in FENCE.findall(text) if language in ("", "bash")]
    lines = COMMAND.findall(FENCE.sub("", text) + "".join(indent(code, " " * 4) for code in shells))
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_commands_of_a_page_exist(path: Path):
    """Scripts with the options that they take, commands of latentlm, targets of make. README.md and docs/use-with.md
    run, `tests/test_use_with.py`."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for words in commands(path.read_text(encoding="utf-8")):
        places = [word for word in words if PLACES.fullmatch(word)]
        assert all((REPOSITORY / place).exists() for place in places), words
        command = words[1] if len(words) > 1 else ""
        if words[0] == "latentlm":
            assert command in {*COMMANDS, "--help", "COMMAND"}, words
        elif words[0] == "make" and not command.startswith("PYTHON"):
            assert f"\n{command}:" in makefile, words
        elif words[0] == "python" and places == places[:1] == [command]:
            beside = (REPOSITORY / command).parent.glob("*.py")  # some share their options
            script = "".join(one.read_text(encoding="utf-8") for one in beside)
            options = [word for word in words if re.fullmatch(r"--\w+", word)]
            takes_fields = "parse_command_line" in (REPOSITORY / command).read_text(encoding="utf-8")  # of a recipe
            assert takes_fields or all(f'"{option}"' in script for option in options), words


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_python_of_a_page_imports_what_there_is(path: Path):
    for _, language, code in FENCE.findall(path.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(dedent(code))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("latentlm"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
