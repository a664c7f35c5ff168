"""Experiments: the entries of a page's `rows.yaml`, checked before anything runs."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from records import NAME, REPOSITORY

from latentlm.runs.recipe import RecipeLoader

HERE = Path(__file__).parent
LIST_FILE = "rows.yaml"
MAX_RATES = 7  # a grid is extended to so many learning rates; then its optimum is reported as one at the edge


class ListError(ValueError):
    """A `rows.yaml` that cannot be run; the message names the file, the entry and the field."""


@dataclass
class Entry:
    """What is run with several seeds and becomes one row of a table.

    Args:
        name: of its records.
        label: how tables and figures call it.
        recipe: a recipe, beside `rows.yaml` or below the repository.
        peer: a file of `peers/`, whose model takes the place of the recipe's.
        overrides: fields by name (`hidden_size`), with section (`model.hidden_size`), or nested (`levels.0.delta`).
        seeds: of the runs that are reported; 0 for trials alone.
        learning_rates: to try, at least three, or one where there are no seeds; without any the recipe's own is used.
        tuned_with: another entry, whose learning rate is used.
        tuned_field: which field of the recipe the learning rates are, such as `muon_learning_rate`.
        tuning_overrides: what the trials change, such as `max_steps`.
        start_from: another entry, whose finished model (of the same seed) is trained on.
        measures: files of `measures/`, run on the finished model.
        curves: further logged values that the record keeps; one that ends with `*` names all that begin so.
        budget_bytes: of training text, read once, where the entry reads another amount than the list says.
        revision: of the repository that ran it, where the code has its options no more: it is reported, and not run.
        best_checkpoint: whether half A is scored while a run trains, and the checkpoint that is best there is scored on
            half B: for runs that read their text many times. Trials count by their best score.
    """

    name: str
    label: str
    recipe: Path
    peer: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    learning_rates: list[float] = field(default_factory=list)
    tuned_with: str | None = None
    tuned_field: str = "learning_rate"
    tuning_overrides: dict[str, Any] = field(default_factory=dict)
    start_from: str | None = None
    measures: list[str] = field(default_factory=list)
    curves: list[str] = field(default_factory=list)
    budget_bytes: int | None = None
    revision: str | None = None
    best_checkpoint: bool = False


@dataclass
class ExperimentList:
    """The entries of one page, in running order: what matters most comes first.

    Args:
        page: name of the folder.
        text: what all entries read: fields of the data section. Paths are looked up below `--text` first.
        budget_bytes: bytes of training text, read once; None for what the recipes say.
        halves: whether trials are scored on half A of the validation text and results on half B.
        joined: whether the documents of each part follow each other as one text, whose end is its only special token.
        entries: by name.
    """

    page: str
    text: dict[str, Any]
    budget_bytes: int | None
    halves: bool
    joined: bool
    entries: dict[str, Entry]

    def budget(self, entry: Entry) -> int | None:
        """Bytes of training text that an entry reads."""
        return self.budget_bytes if entry.budget_bytes is None else entry.budget_bytes


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file with the scalars of recipes: `1e-3` is a number."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), RecipeLoader)
    except (OSError, yaml.YAMLError) as error:
        raise ListError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ListError(f"{path} must hold a mapping")
    return content


def read_list(page: str, root: Path = HERE) -> ExperimentList:
    """
    Raises:
        ListError: for an unknown field, recipe, peer or entry.
    """
    folder = root / page
    path = folder / LIST_FILE
    content = read_mapping(path)
    check_names(path, content, ("text", "budget_bytes", "halves", "joined", "defaults", "entries"))
    defaults = content.get("defaults") or {}
    names = [one.name for one in fields(Entry) if one.name != "name"]
    entries: dict[str, Entry] = {}
    for name, values in (content.get("entries") or {}).items():
        values = {**defaults, **(values or {})}
        check_names(f"{path}: entry {name}", values, names)
        if not NAME.fullmatch(name):
            raise ListError(f"{path}: entry {name!r} is no plain name (a-z, 0-9, '-', '.', '_')")
        if "recipe" not in values:
            raise ListError(f"{path}: entry {name} names no recipe")
        values["recipe"] = find_recipe(folder, str(values["recipe"]))
        values["overrides"] = {**(defaults.get("overrides") or {}), **(values.get("overrides") or {})}
        if isinstance(values.get("seeds"), int):
            values["seeds"] = list(range(values["seeds"]))
        values.setdefault("label", name)
        entries[name] = Entry(name=name, **values)
    for entry in entries.values():
        check_entry(path, entry, entries)
        if entry.best_checkpoint and not content.get("halves", False):
            raise ListError(
                f"{path}: entry {entry.name}: best_checkpoint needs halves: one to choose it, one to report"
            )
    for entry in entries.values():
        chain = [entry.name]
        while (base := entries[chain[-1]].start_from) is not None:
            chain.append(base)
            if chain.count(base) > 1:
                raise ListError(f"{path}: entry {entry.name}: start_from leads back to {base}: {' → '.join(chain)}")
    flags = {name: bool(content.get(name, False)) for name in ("halves", "joined")}
    text, budget = dict(content.get("text") or {}), content.get("budget_bytes")
    return ExperimentList(page, text, budget, **flags, entries=entries)


def check_entry(path: Path, entry: Entry, entries: dict[str, Entry]) -> None:
    for what in ("tuned_with", "start_from"):
        other = getattr(entry, what)
        if other is not None and other not in entries:
            raise ListError(f"{path}: entry {entry.name}: {what} {other!r} is no entry here{nearest(other, entries)}")
    if entry.tuned_with is not None and (entry.learning_rates or not entries[entry.tuned_with].learning_rates):
        raise ListError(
            f"{path}: entry {entry.name}: tuned_with needs an entry with learning_rates, and none of its own"
        )
    rates, screens = entry.learning_rates, not entry.seeds and len(entry.learning_rates) == 1
    if rates and not screens and (len(rates) < 3 or sorted(rates) != rates):
        raise ListError(f"{path}: entry {entry.name}: learning_rates must be at least three, in ascending order")
    for folder, modules in (("peers", [entry.peer] if entry.peer else []), ("measures", entry.measures)):
        for module in modules:
            if not (HERE / folder / f"{module}.py").exists():
                known = [one.stem for one in (HERE / folder).glob("*.py")]
                raise ListError(f"{path}: entry {entry.name}: no {folder}/{module}.py{nearest(module, known)}")


def check_names(where: Any, content: dict[str, Any], known: Iterable[str]) -> None:
    for name in content:
        if name not in known:
            raise ListError(f"{where}: unknown field {name!r}{nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.3)
    return f"; did you mean {close[0]!r}?" if close else ""


def find_recipe(folder: Path, name: str) -> Path:
    """A recipe beside `rows.yaml` (with or without its suffix), or below the repository."""
    candidates = [folder / name, folder / f"{name}.yaml", REPOSITORY / name, REPOSITORY / name / "recipe.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    raise ListError(f"no recipe {name!r} in {folder} or {REPOSITORY}")


# ---- Learning rates ----


def extend_grid(rates: list[float], best: float) -> float | None:
    """The learning rate to try next, so that the optimum lies inside the grid; None where it does, or where the grid
    is as long as it may be."""
    ordered = sorted(rates)
    if len(ordered) == 1 or best not in (ordered[0], ordered[-1]) or len(ordered) >= MAX_RATES:
        return None
    return float(f"{ordered[0] ** 2 / ordered[1] if best == ordered[0] else ordered[-1] ** 2 / ordered[-2]:.3g}")


def at_edge(rates: list[float], best: float) -> bool:
    return best in (min(rates), max(rates))
