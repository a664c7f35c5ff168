"""Tables of a results page, in Markdown, from records alone."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from entries import ListError, nearest
from records import FORMER, MEASURED, RESULT, RUN, TUNING, Record
from significance import LEVEL, Comparison, paired, welch

MISSING = "–"
GENERATION = "generation"  # the page whose records hold speeds of other pages' entries
NO_RECORDS = "No records yet."
ONE_SEED = "¹"


class Group:
    """The records of one entry: its runs, one per seed, or what a former page stated or a script measured; and the
    speed of generation, which was measured apart."""

    def __init__(self, records: Sequence[Record]):
        self.measured = [one for one in records if one.page == GENERATION]
        kinds = ([one for one in records if one.source == source] for source in (RUN, FORMER, MEASURED))
        self.records = next((ones for ones in kinds if ones and ones != self.measured), [])
        self.label = (self.records or self.measured)[0].label

    @property
    def num_seeds(self) -> int | None:
        """How many runs; None where a former page did not say."""
        counts = [one.num_seeds for one in self.records]
        return None if None in counts else sum(count for count in counts if count is not None)

    def values(self, names: str) -> list[float]:
        """Of each record: a metric, or a field such as `seconds` or `parameters.body`; of `a|b` the first one known."""
        return next((values for name in names.split("|") if (values := self.values_of(name))), [])

    def values_of(self, name: str) -> list[float]:
        # What was measured apart, all entries alike, comes first.
        apart = [float(one.metrics[name]) for one in self.measured if name in one.metrics]
        return apart or self.values_in(self.records or self.measured, name)

    @staticmethod
    def values_in(records: Sequence[Record], name: str) -> list[float]:
        found = []
        for record in records:
            value: Any = record.metrics.get(name)
            if value is None:
                value = dataclasses.asdict(record)
                for part in name.split("."):
                    value = value.get(part) if isinstance(value, dict) else None
            if isinstance(value, int | float):
                found.append(float(value))
        return found

    def by_seed(self, name: str) -> dict[int, float]:
        """The metric of each run that has it."""
        runs = ((record.seed, record.metrics.get(name)) for record in self.records)
        return {seed: float(value) for seed, value in runs if seed is not None and value is not None}

    def ratios(self, name: str, per: str | None) -> list[float]:
        """Of each record, a value divided by another one, where `per` names one."""
        if not per:
            return self.values(name)
        runs = (Group([record]) for record in self.records)
        pairs = ((value, other) for run in runs for value in run.values(name) for other in run.values(per))
        return [value / other for value, other in pairs if other]

    def mean(self, name: str, per: str | None = None) -> float | None:
        values = self.ratios(name, per)
        return statistics.fmean(values) if values else None

    def spread(self, name: str, per: str | None = None) -> float | None:
        """Standard deviation over seeds; None of a single one."""
        if len(self.records) == 1:
            return next(
                (self.records[0].spreads[one] for one in name.split("|") if one in self.records[0].spreads), None
            )
        values = self.ratios(name, per)
        return statistics.stdev(values) if len(values) > 1 else None


def group_records(records: Iterable[Record], purpose: str = RESULT) -> dict[str, Group]:
    """The records of a page by entry."""
    by_entry: dict[str, list[Record]] = {}
    for record in records:
        if record.purpose == purpose:
            by_entry.setdefault(record.entry, []).append(record)
    groups = {entry: Group(ones) for entry, ones in by_entry.items()}
    return {entry: group for entry, group in groups.items() if group.records}


def pick(groups: dict[str, Group], names: Sequence[str], where: str) -> list[Group]:
    """
    Raises:
        ListError: for an entry without records.
    """
    for name in names:
        if name not in groups:
            raise ListError(f"{where}: no records of entry {name!r}{nearest(name, groups)}")
    return [groups[name] for name in names]


def number(value: float, column: dict[str, Any]) -> str:
    text = format(value * column.get("scale", 1), column.get("format", ".3f"))
    return text + column.get("unit", "")


def cell(group: Group, column: dict[str, Any]) -> str:
    """What a column says of an entry: the mean over seeds, with its spread where it is known.

    Args:
        column: `value` (a metric or field, `a|b` for the first that is known, or a list, joined by `join`), `format`,
            `scale`, `unit`, `per` (a field to divide by), and `plus_minus` (a metric that is the error of a single
            measurement).
    """
    names = column["value"] if isinstance(column["value"], list) else [column["value"]]
    cells = []
    for name in names:
        mean = group.num_seeds if name == "num_seeds" else group.mean(name, column.get("per"))
        if mean is None:
            cells.append(MISSING)
            continue
        error = group.mean(column["plus_minus"]) if "plus_minus" in column else group.spread(name, column.get("per"))
        unit = column.get("unit", "")
        text = number(mean, column)
        if error is not None and name != "num_seeds" and column.get("spread", True):
            text = f"{text.removesuffix(unit)} ± {number(error, column)}"
        cells.append(text)
    join = column.get("join", ", ")
    while len(cells) > 1 and cells[-1] == MISSING and join == ", ":
        cells.pop()
    return MISSING if set(cells) == {MISSING} else join.join(cells)


def compare(one: Group, other: Group, name: str, pairs: bool) -> Comparison | None:
    """The difference of two entries, over seeds or over pairs of the same seed."""
    if not pairs:
        return welch(one.values(name), other.values(name))
    ones, others = one.by_seed(name), other.by_seed(name)
    seeds = sorted(ones.keys() & others.keys())
    return paired([ones[seed] for seed in seeds], [others[seed] for seed in seeds])


def chance(group: Group, other: Group | None, column: dict[str, Any]) -> str:
    """p of the difference to another entry; missing where there is too little to tell."""
    if other is None or group is other:
        return MISSING
    comparison = compare(group, other, column["value"], column.get("paired", False))
    return MISSING if comparison is None else number(comparison.p, column)


def change(group: Group, other: Group | None, column: dict[str, Any]) -> str:
    """The difference to another entry, with half of its 95 % interval where there are runs enough."""
    if other is None or group is other:
        return MISSING
    comparison = compare(group, other, column["value"], column.get("paired", False))
    signed = {**column, "format": f"+{column.get('format', '.3f')}"}
    if comparison is not None:
        return f"{number(comparison.difference, signed)} ± {number(comparison.margin, column)}"
    means = group.mean(column["value"]), other.mean(column["value"])
    return MISSING if means[0] is None or means[1] is None else number(means[0] - means[1], signed)


def column_cell(group: Group, groups: dict[str, Group], column: dict[str, Any]) -> str:
    """A cell of any column: with `against` the p of the difference to that entry, with `less` the difference."""
    if "against" in column:
        return chance(group, groups.get(column["against"]), column)
    return change(group, groups.get(column["less"]), column) if "less" in column else cell(group, column)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> str:
    rule = ["---"] * numbers_from + ["--:"] * (len(header) - numbers_from)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def is_single(group: Group, columns: Iterable[dict[str, Any]]) -> bool:
    """Whether columns hold what one run of an entry says: it has no other, or the metrics are those of one alone."""
    listed = (column["value"] if isinstance(column["value"], list) else [column["value"]] for column in columns)
    names = [part for values in listed for name in values for part in name.split("|")]
    counts = [sum(name in record.metrics for record in group.records) for name in names]
    return group.num_seeds == 1 or (len(group.records) > 1 and max(counts, default=0) == 1)


def results_table(groups: dict[str, Group], table: dict[str, Any], where: str) -> str:
    """A table of entries, with a note on those that are one seed; a column of which nothing is known is left out, and
    one with `against` holds the p of the difference to that entry, one with `less` the difference. With `parts`, labels
    of prefixes, an entry has a row of each part, whose values are named `<prefix><value>`."""
    if "parts" in table:
        return parts_table(groups, table, where)
    chosen = pick(groups, table["entries"], where)
    labels = table.get("labels") or {}
    single = [is_single(group, table["columns"]) for group in chosen]
    if table.get("mark", True) is False:
        single = [False] * len(chosen)
    mixed = any(single) and not all(single)
    names = [
        labels.get(name, group.label) + (f" {ONE_SEED}" if mixed and one else "")
        for name, group, one in zip(table["entries"], chosen, single, strict=True)
    ]
    columns = [
        (
            column["heading"],
            [column_cell(group, groups, column) for group in chosen],
        )
        for column in table["columns"]
    ]
    columns = [(heading, cells) for heading, cells in columns if set(cells) != {MISSING}]
    rows = zip(names, *(cells for _, cells in columns), strict=True)
    text = markdown([table.get("head", ""), *(heading for heading, _ in columns)], rows)
    if not any(single):
        return text
    return text + ("\n\nOne seed each." if not mixed else f"\n\n{ONE_SEED} One seed: a difference may be chance.")


def parts_table(groups: dict[str, Group], table: dict[str, Any], where: str) -> str:
    """A table whose rows are the parts of a measure, one entry after the other."""
    columns = table["columns"]
    rows = [
        [
            label if len(table["entries"]) == 1 else f"{group.label}: {label}",
            *(column_cell(group, groups, {**column, "value": f"{prefix}{column['value']}"}) for column in columns),
        ]
        for group in pick(groups, table["entries"], where)
        for prefix, label in table["parts"].items()
    ]
    return markdown([table.get("head", ""), *(column["heading"] for column in columns)], rows)


def raw_table(groups: dict[str, Group], table: dict[str, Any], where: str) -> str:
    """A table as CSV: of each column the mean over seeds and its standard deviation, neither rounded nor scaled."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [
        column
        for column in table["columns"]
        if column["value"] != "num_seeds" and not {"against", "less"} & set(column)
    ]
    names = [f"{column['value']}{' / ' + column['per'] if 'per' in column else ''}" for column in columns]
    tests = [column for column in table["columns"] if "against" in column]
    head = [heading for name in names for heading in (name, f"{name}, sd")]
    writer.writerow(
        ["entry", "label", "num_seeds", *head, *(f"p against {one['against']}" for one in tests), "revision"]
    )
    for name, group in zip(table["entries"], pick(groups, table["entries"], where), strict=True):
        numbers = [
            value
            for column in columns
            for value in (
                group.mean(column["value"], column.get("per")),
                group.spread(column["value"], column.get("per")),
            )
        ]
        chances = [chance(group, groups.get(one["against"]), {**one, "format": ".6g"}) for one in tests]
        cells = ["" if value is None else f"{value:.10g}" for value in numbers]
        chances = ["" if value == MISSING else value for value in chances]
        revisions = " ".join(dict.fromkeys(one.revision for one in group.records if one.revision))
        writer.writerow([name, group.label, group.num_seeds or "", *cells, *chances, revisions])
    return text.getvalue()


def sources_table(groups: dict[str, Group], table: dict[str, Any], where: str) -> str:
    """Where the numbers of each entry come from: command, seeds, revision, machine; `commands` names those of entries
    that no list holds. Speeds of generation are measured apart, all by one command."""
    rows, apart = [], []
    labels, commands = table.get("labels") or {}, table.get("commands") or {}
    for name, group in zip(table["entries"], pick(groups, table["entries"], where), strict=True):
        ones, label = group.records, labels.get(name, group.label)
        apart += group.measured
        if ones[0].source == FORMER:
            rows.append([label, "– (the page of a former run)", MISSING, MISSING, MISSING])
            continue
        command = f"python eval/experiments/run.py {ones[0].page} --only {name}"
        if name.startswith("own."):  # a recipe that is not in the repository
            command = f"latentlm compare --add {ones[0].label}.yaml"
        rows.append(source_row(label, commands.get(name, command), ones))
    if apart:
        rows.append(source_row("speed of generation", f"python eval/experiments/{GENERATION}_speed.py", apart))
    note = "\n\n\\* with changes that were not committed." if any("*" in row[3] for row in rows) else ""
    return markdown(["", "command", "seeds", "revision", "machine"], rows, numbers_from=5) + note


def source_row(label: str, command: str, records: Sequence[Record]) -> list[str]:
    seeds = ", ".join(str(one.seed) for one in records if one.seed is not None)
    revisions = dict.fromkeys(f"`{one.revision[:7]}`{'*' * bool(one.dirty)}" for one in records if one.revision)
    machines = dict.fromkeys(str((one.machine or {}).get("cpu", MISSING)) for one in records)
    return [label, f"`{command}`", seeds or MISSING, ", ".join(revisions) or MISSING, ", ".join(machines)]


def tuning_table(records: Iterable[Record], table: dict[str, Any]) -> str:
    """Every trial of a learning rate; the best one of each entry is bold, with a note where it is at the edge."""
    trials = [one for one in records if one.purpose == TUNING and one.entry in table.get("entries", [one.entry])]
    trials.sort(key=lambda one: (one.entry, one.learning_rate or 0.0))
    if not trials:
        return NO_RECORDS
    columns = table["columns"]
    rows = []
    for entry in dict.fromkeys(one.entry for one in trials):
        mine = [one for one in trials if one.entry == entry]
        best = min(mine, key=lambda one: math.inf if "diverged" in one.metrics else one.metrics[columns[0]["value"]])
        for one in mine:
            rate = f"{one.learning_rate:g}" if one.learning_rate else MISSING
            edge = " (optimum at the edge)" if one in (mine[0], mine[-1]) else ""
            rate += " (diverged)" if "diverged" in one.metrics else ""
            label = table.get("labels", {}).get(entry, one.label)
            values = [Group([one]).mean(column["value"]) for column in columns]
            cells = [
                MISSING if value is None else number(value, column)
                for value, column in zip(values, columns, strict=True)
            ]
            rows.append([label, f"**{rate}**{edge}" if one is best and len(mine) > 1 else rate, *cells])
    return markdown(
        [table.get("head", "configuration"), "learning rate", *(column["heading"] for column in columns)], rows
    )


def differences(groups: dict[str, Group], pairs: Sequence[dict[str, Any]], where: str) -> str:
    """One line per pair of entries: which is lower and by how much, or that no difference is seen."""
    return "\n".join(f"- {difference(*pick(groups, pair['entries'], where), pair)}" for pair in pairs)


def difference(one: Group, other: Group, pair: dict[str, Any]) -> str:
    """A difference counts as one where p is below `LEVEL`, as a reader of a column with `against` would say."""
    name, pairs = pair["value"], pair.get("paired", False)
    means = one.mean(name), other.mean(name)
    heading = f"{one.label} against {other.label}, {pair.get('heading', name)}: "
    if means[0] is None or means[1] is None:
        return f"{heading}not measured"
    count, among = len(one.by_seed(name).keys() & other.by_seed(name).keys()), ""
    if pairs:
        among = f" in {count} pairs of runs"
    else:
        heading += " and ".join(cell(group, pair) for group in (one, other)) + "; "
    comparison = compare(one, other, name, pairs)
    if comparison is None and pairs:
        return f"{heading}{count} pair{'s' * (count != 1)} of runs, too few to tell"
    if comparison is None:
        return f"{heading}one seed, so nothing follows from the difference of {number(abs(means[0] - means[1]), pair)}"
    size = f"{number(abs(comparison.difference), pair)} {'lower' if comparison.difference < 0 else 'higher'}"
    if comparison.p < LEVEL:
        return f"{heading}{size}{among} (p = {comparison.p:.2g})"
    could = f"{number(comparison.detectable, pair)} would be seen four times in five"
    return f"{heading}no difference seen{among} ({size}, p = {comparison.p:.2g}; {could})"
