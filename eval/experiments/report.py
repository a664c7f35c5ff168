"""Make the tables and figures of the results pages from records; nothing is trained.

    python eval/experiments/report.py [PAGE ...] [--check]

Each page of `docs/results` (or a `page.md` beside the list) has blocks that this writes, between markers:

    <!-- table NAME --> … <!-- end -->            and figure, differences, tuning, sources

What a block holds is said by `report.yaml` beside the list. `--check` changes nothing and fails where a block, a figure
or a CSV file is not what the records give.
"""

import argparse
import fnmatch
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from entries import HERE, ListError, check_names, nearest, read_mapping
from figures import contents, digest, draw, drawn_digest
from records import RECORDS, REPOSITORY, Record, RecordError, read_page
from tables import NO_RECORDS, Group, differences, group_records, raw_table, results_table, sources_table, tuning_table

RESULTS = REPOSITORY / "docs" / "results"
REPORT_FILE = "report.yaml"
SECTIONS = {
    "table": "tables",
    "figure": "figures",
    "differences": "differences",
    "tuning": "tunings",
    "sources": "sources",
}
FIELDS = (*SECTIONS.values(), "shared", "partial", "path", "records")
KINDS = "|".join(SECTIONS)
BLOCK = re.compile(rf"(<!-- ({KINDS}) ([\w.-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
BEGIN = re.compile(rf"<!-- ({KINDS}) ")


def read_pages(names: str | list[str], records: Path) -> list[Record]:
    """The records of a page, or of several."""
    return [one for name in ([names] if isinstance(names, str) else names) for one in read_page(name, records)]


class Report:
    """The blocks of one page.

    Args:
        page: folder of its list.
        lists: where that folder lies.
        records: folder of all records.
        results: folder of the pages.
    """

    def __init__(self, page: str, lists: Path = HERE, records: Path = RECORDS, results: Path = RESULTS):
        beside = lists / page / "page.md"
        self.where = lists / page / REPORT_FILE
        self.specification = read_mapping(self.where)
        check_names(self.where, self.specification, FIELDS)
        name = self.specification.get("path", f"{page}.md")
        self.path = beside if beside.exists() else (results / name).resolve()
        self.source = self.specification.get("records", page)
        self.page, self.folder, self.records = page, records, read_pages(self.source, records)
        self.groups = group_records(self.records)
        self.figures: dict[Path, dict[str, Any]] = {}
        self.files: dict[Path, str] = {}  # CSV

    def block(self, kind: str, name: str) -> str:
        """The text of a block."""
        section = self.specification.get(SECTIONS[kind]) or {}
        if name not in section:
            raise ListError(f"{self.where}: no {kind} {name!r}{nearest(name, section)}")
        where = f"{self.where}: {kind} {name}"
        source = section[name].get("records", self.source) if kind in ("table", "sources", "figure") else self.source
        groups = self.groups if source == self.source else group_records(read_pages(source, self.folder))
        one, missing = self.known(kind, section[name], groups)
        note = f"\n\nNot run yet: {', '.join(missing)}." if missing and kind == "table" else ""
        if not one or ("entries" in one and not one["entries"]):
            return NO_RECORDS
        makers: dict[str, Callable[[Any], str]] = {
            "table": lambda one: self.table(name, one, groups, where),
            "sources": lambda one: sources_table(groups, one, where),
            "figure": lambda one: self.figure(name, one, groups, where),
            "differences": lambda one: differences(self.groups, one, where),
            "tuning": lambda one: tuning_table(self.records, one),
        }
        return makers[kind](one) + note

    def known(self, kind: str, one: Any, groups: dict[str, Group]) -> tuple[Any, list[str]]:
        """A table or figure with its entries that have records, and the others; those of a page that is `partial` may
        be missing. Entries may be patterns of names. In a table `entries` may be one pattern; the lowest value of the
        first column comes first, and what has none is left out."""
        if kind == "table" and isinstance(one["entries"], str):
            value = one["columns"][0]["value"]
            means = {name: groups[name].mean(value) for name in fnmatch.filter(groups, one["entries"])}
            known_means = {name: mean for name, mean in means.items() if mean is not None}
            return {**one, "entries": sorted(known_means, key=lambda name: known_means[name])}, []
        if kind == "tuning" or not self.specification.get("partial", False):
            return one, []
        if kind == "differences":
            return [pair for pair in one if set(pair["entries"]) <= groups.keys()], []
        names = [
            match for name in one["entries"] for match in (fnmatch.filter(groups, name) if "*" in name else [name])
        ]
        known = {**one, "entries": [name for name in names if name in groups]}
        if "panels" in one:
            if not {panel["less"] for panel in one["panels"] if "less" in panel} <= groups.keys():
                known["entries"] = []
            known["panels"] = [
                {**panel, "yardsticks": [name for name in panel.get("yardsticks", []) if name in groups]}
                for panel in one["panels"]
            ]
        return known, [name for name in names if name not in groups]

    def table(self, name: str, table: dict[str, Any], groups: dict[str, Group], where: str) -> str:
        if "csv" in table:
            self.files[self.path.parent / table["csv"]] = raw_table(groups, table, where)
        return results_table(groups, table, where)

    def figure(self, name: str, figure: dict[str, Any], groups: dict[str, Group], where: str) -> str:
        path = self.path.parent / "figures" / f"{self.page}-{name}.{figure.get('format', 'png')}"
        self.figures[path] = contents(groups, figure, where)
        return f"![{figure['alt']}](figures/{path.name})"

    def text(self) -> str:
        """The page with every block as the records give it.

        Raises:
            ListError: for a block that is not closed, or that `report.yaml` does not know.
        """
        old = self.path.read_text(encoding="utf-8")
        if len(BEGIN.findall(old)) != len(BLOCK.findall(old)):
            raise ListError(f"{self.path}: a block has no `<!-- end -->`")
        return BLOCK.sub(lambda match: f"{match[1]}{self.block(match[2], match[3])}\n{match[5]}", old)

    def problems(self) -> list[str]:
        """What of the page is not what the records give."""
        old, new = self.path.read_text(encoding="utf-8"), self.text()
        found = []
        for before, after in zip(BLOCK.finditer(old), BLOCK.finditer(new), strict=True):
            if before[0] != after[0]:
                lines = zip(before[4].splitlines(), after[4].splitlines(), strict=False)
                line = next((f": {a!r} there, {b!r} from the records" for a, b in lines if a != b), "")
                found.append(f"{self.path}: {before[2]} {before[3]} is not what the records give{line}")
        stale = [path for path, content in self.figures.items() if drawn_digest(path) != digest(content)]
        found += [f"{path} was not drawn from these records" for path in stale]
        other = [path for path, text in self.files.items() if not path.exists() or path.read_text("utf-8") != text]
        return found + [f"{path} is not what the records give" for path in other]

    def write(self) -> None:
        text = self.text()
        self.path.write_text(text, encoding="utf-8")
        for path, content in self.figures.items():
            if drawn_digest(path) != digest(content):
                draw(content, path)
        for path, content in self.files.items():
            path.write_text(content, encoding="utf-8")
        print(self.path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="folders beside this file (default: all with a report.yaml)")
    parser.add_argument("--check", action="store_true", help="fail where a page is not what the records give")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--lists", type=Path, default=HERE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    pages = options.pages or sorted(path.parent.name for path in options.lists.glob(f"*/{REPORT_FILE}"))
    problems = []
    try:
        for page in pages:
            report = Report(page, options.lists, options.records, options.results)
            if options.check:
                problems += report.problems()
            else:
                report.write()
    except (ListError, RecordError) as error:
        sys.exit(f"report.py: {error}")
    if problems:
        sys.exit("\n".join([*problems, "Run `python eval/experiments/report.py`."]))


if __name__ == "__main__":
    main()
