"""The fields of a dataclass, read from its source: what `--help` lists without importing torch."""

import ast
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

REQUIRED = "required"
SECTION = re.compile(r"^(Args?|Arguments|Parameters|Attributes):$", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*) ?(?:\(.*\))?:? *(.*)$")


@dataclass(frozen=True)
class Field:
    """A field: its name, its type and default as written in the source, and what is said of it (from the metadata's
    `help`, the `Args` of the class, or a comment above)."""

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True)
class Source:
    """A module's file and its syntax tree."""

    module: str
    path: Path
    tree: ast.Module
    lines: tuple[str, ...]

    def absolute(self, statement: ast.ImportFrom) -> str:
        """The module that a `from … import` reads."""
        if not statement.level:
            return statement.module or ""
        package = self.module.split(".")
        if self.path.name != "__init__.py":
            package = package[:-1]
        package = package[: len(package) - statement.level + 1]
        return ".".join([*package, *([statement.module] if statement.module else [])])


@cache
def read(module: str) -> Source | None:
    """A module by its name, not imported; None if it has no source."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    # A folder of modules without __init__.py has no origin.
    path = Path(spec.origin or Path(next(iter(spec.submodule_search_locations or ["nowhere"]))) / "__init__.py")
    for name in rest:
        folder = path.parent / name
        path = folder / "__init__.py" if folder.is_dir() else path.parent / f"{name}.py"
    if path.suffix != ".py" or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    return Source(module, path, ast.parse(text), tuple(text.splitlines()))


@cache
def find(module: str, name: str) -> tuple[Source, ast.ClassDef | ast.expr] | None:
    """The class, or the value of a constant, that a name stands for in a module, wherever it is imported from."""
    source = read(module)
    if source is None:
        return None
    for statement in source.tree.body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return source, statement
        if isinstance(statement, ast.Assign) and name in (t.id for t in statement.targets if isinstance(t, ast.Name)):
            return source, statement.value
    for statement in ast.walk(source.tree):  # also under TYPE_CHECKING, where transformers says what is where
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return find(source.absolute(statement), alias.name)
    return None


def classes(reference: str) -> Iterator[tuple[Source, ast.ClassDef]]:
    """The class `"module:name"` and those it derives from whose sources are there, the class itself first."""
    module, _, name = reference.partition(":")
    place = find(module, name)
    source, node = place or (None, None)
    if source is None or not isinstance(node, ast.ClassDef):
        return
    yield source, node
    for base in node.bases:
        if isinstance(base, ast.Name):
            yield from classes(f"{source.module}:{base.id}")


def class_named_by(reference: str, attribute: str) -> str | None:
    """The class that a class names in an attribute, as `"module:name"`: `arguments_class` of a trainer."""
    for source, node in classes(reference):
        for statement in node.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            value = getattr(statement, "value", None)
            if isinstance(value, ast.Name) and any(isinstance(t, ast.Name) and t.id == attribute for t in targets):
                return f"{source.module}:{value.id}"
    return None


def fields_of(reference: str) -> list[Field]:
    """The fields of the dataclass `"module:name"`, inherited ones first.

    Raises:
        LookupError: if there is no source of that class.
    """
    fields: dict[str, Field] = {}
    sources = list(classes(reference))
    if not sources:
        raise LookupError(f"{reference}: no source")
    for source, node in reversed(sources):
        texts = described_in(ast.get_docstring(node, clean=False) or "")
        end, comment = 0, ""  # the line where the field before ends, and what the comment above it says
        for statement in node.body:
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            above = comment_above(source.lines, statement.lineno)
            comment = comment if not above and end == statement.lineno - 1 else above
            end = statement.end_lineno or statement.lineno
            options, name, kind = keywords(statement.value), statement.target.id, ast.unparse(statement.annotation)
            if kind.startswith(("ClassVar", "typing.ClassVar")) or is_false(options.get("init")):
                continue
            text = string(options["help"]) if "help" in options else texts.get(name) or comment
            if not text and name in fields:
                text = fields[name].help
            fields[name] = Field(name, kind, default_of(statement.value, options, source, node), text)
        for name, text in texts.items():  # what a subclass says of an inherited field
            if name in fields and not fields[name].help:
                fields[name] = replace(fields[name], help=text)
    return list(fields.values())


def described_in(docstring: str) -> dict[str, str]:
    """What the `Args` of a docstring say of each name."""
    texts: dict[str, str] = {}
    names: list[str] = []
    parts = SECTION.split(inspect.cleandoc(docstring))
    for section in parts[2::2]:
        for line in section.splitlines():
            entry = ENTRY.match(line)
            if entry:
                names = entry[1].split(", ")
                texts |= dict.fromkeys(names, entry[2])
            elif line.startswith(" " * 5) and names:
                texts |= {name: f"{texts[name]} {line.strip()}".strip() for name in names}
            elif line.strip():
                names = []
    return texts


def comment_above(lines: tuple[str, ...], number: int) -> str:
    """The comment that ends in the line before line `number` (counted from 1)."""
    comment: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#"):
            break
        comment.insert(0, line.strip().removeprefix("#").strip())
    return " ".join(comment)


def keywords(value: ast.expr | None) -> dict[str, ast.expr]:
    """The arguments of a `field(…)`, and the `help` in its metadata."""
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "field"):
        return {}
    options = {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
    metadata = options.get("metadata")
    if isinstance(metadata, ast.Dict):
        for key, text in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "help":
                options["help"] = text
    return options


def default_of(
    value: ast.expr | None, options: dict[str, ast.expr], source: Source, owner: ast.ClassDef | None = None
) -> str:
    """The default as it would be written in a recipe, [`REQUIRED`] if there is none."""
    if options:
        value = options.get("default")
        factory = options.get("default_factory")
        if value is None and factory is not None:
            empty = {"list": "[]", "dict": "{}"}
            return empty.get(ast.unparse(factory), ast.unparse(factory))
    if value is None:
        return REQUIRED
    value = constant(value, source, owner)
    if isinstance(value, ast.Constant):
        return json.dumps(value.value) if value.value is None or isinstance(value.value, bool) else str(value.value)
    return ast.unparse(value)


def constant(value: ast.expr, source: Source, owner: ast.ClassDef | None) -> ast.expr:
    """The constant that names, members of an Enum and sums stand for, as far as the source says it."""
    if isinstance(value, ast.Name):
        for statement in reversed(list(ast.walk(owner)) if owner else []):  # of several assignments the last
            if isinstance(statement, ast.Assign) and value.id in map(ast.unparse, statement.targets):
                return statement.value
        place, node = find(source.module, value.id) or (None, None)
        if place is not None and isinstance(node, ast.expr):
            return constant(node, place, None)
    elif isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        place, node = find(source.module, value.value.id) or (None, None)
        for member in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(member, ast.Assign) and value.attr in map(ast.unparse, member.targets):
                return member.value
    elif isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        left, right = constant(value.left, source, owner), constant(value.right, source, owner)
        if isinstance(left, ast.Constant) and isinstance(right, ast.Constant):
            return ast.Constant(left.value + right.value)  # pyright: ignore[reportOperatorIssue]
    return value


def is_false(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def string(value: ast.expr) -> str:
    """A string that is written in parts."""
    if isinstance(value, ast.Constant):
        return str(value.value)
    return " ".join(str(part.value) for part in ast.walk(value) if isinstance(part, ast.Constant))
