"""Records: one small JSON per finished run, from which every table and figure is made."""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import torch
from huggingface_hub.dataclasses import type_validator

from latentlm.runs.checkpoints import write_atomically
from latentlm.runs.redaction import redact

REPOSITORY = Path(__file__).parents[2]
RECORDS = REPOSITORY / "eval" / "records"
SCHEMA = 1
RUN = "run"
FORMER = "table of a former run"  # the run is gone; what its page stated with numbers
MEASURED = "benchmark"  # numbers of a script; nothing was trained
RESULT, TUNING = "result", "tuning"
MAX_CURVE_POINTS = 60
MAX_BYTES = 64_000
PACKAGES = ("latentlm", "torch", "transformers", "accelerate", "tokenizers", "numpy")
CAPABILITIES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "bf16", "asimd", "sve")
NAME = re.compile(r"[a-z0-9][a-z0-9.+_-]*")


class RecordError(ValueError):
    """A record that does not hold what the schema asks for, or that may not be written; the message names the field."""


def corpora() -> Path:
    """The folder of the corpora: what `LATENTLM_TEXT` names, or the one beside the repository."""
    return Path(os.environ.get("LATENTLM_TEXT") or REPOSITORY.parent / "shared" / "data")


@dataclass
class Record:
    """One finished run, or one row of a table whose runs are gone.

    Args:
        page: folder beside this file.
        entry: what was run, by its name in `rows.yaml`.
        label: how tables and figures call it.
        source: `run`; `table of a former run`, of which only what its page stated is known; or `benchmark`, which
            trained nothing.
        seed: of the run; None for a former one.
        num_seeds: how many runs the metrics are a mean of, 1 for a run; None where the page did not say.
        purpose: `result`, or `tuning` of the learning rate.
        learning_rate: the highest one of its schedule.
        at_edge: whether the optimum of the tuning lies at the edge of the grid; None where nothing was tuned.
        configuration: model, data and training: every field that the run depends on.
        curve: of each logged value, `[step, value]` pairs, thinned.
        metrics: the last evaluation, and whatever was measured after training.
        spreads: standard deviation over seeds of the metrics of a former run.
        steps: optimizer steps.
        seconds: of training, evaluations and checkpoints apart.
        wall_seconds: from the start of the (last) process to its end.
        peak_memory_bytes: of the (last) process.
        flops: of the whole training, an estimate.
        flops_method: how they are estimated.
        parameters: `total`, `embedding` (rows of tables that are looked up) and `body` (the rest).
        tokens_seen, bytes_seen: predicted in training.
        versions: of Python and the packages.
        revision: of the repository, and whether it had changes (`dirty`).
        machine: CPU model, capabilities, cores and threads; neither host nor user.
        schema: version of this layout.
    """

    page: str
    entry: str
    label: str
    source: str = RUN
    seed: int | None = None
    num_seeds: int | None = 1
    purpose: str = RESULT
    learning_rate: float | int | None = None
    at_edge: bool | None = None
    configuration: dict[str, Any] | None = None
    curve: dict[str, list[list[float | int]]] = field(default_factory=dict)
    metrics: dict[str, float | int] = field(default_factory=dict)
    spreads: dict[str, float | int] = field(default_factory=dict)
    steps: int | None = None
    seconds: float | int | None = None
    wall_seconds: float | int | None = None
    peak_memory_bytes: int | None = None
    flops: float | int | None = None
    flops_method: str | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    tokens_seen: int | None = None
    bytes_seen: int | None = None
    versions: dict[str, str] | None = None
    revision: str | None = None
    dirty: bool | None = None
    machine: dict[str, Any] | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(Record).items():
            try:
                type_validator(name, getattr(self, name), annotation)
            except TypeError as error:
                raise RecordError(f"{self.entry}: {error}") from error
        self._require(self.schema == SCHEMA, "schema", f"must be {SCHEMA}")
        self._require(self.source in (RUN, FORMER, MEASURED), "source", f"must be {RUN!r}, {FORMER!r} or {MEASURED!r}")
        self._require(self.purpose in (RESULT, TUNING), "purpose", f"must be {RESULT!r} or {TUNING!r}")
        for name in ("page", "entry"):
            self._require(NAME.fullmatch(getattr(self, name)) is not None, name, "must be a plain name")
        self._require(bool(self.metrics), "metrics", "must not be empty: the run is not finished")
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise RecordError(f"{self.entry}: metrics.{name} is {value}, but must be finite")
        if self.source != RUN:
            return
        known = ("seed", "configuration", "steps", "seconds", "flops", "flops_method", "tokens_seen", "bytes_seen")
        for name in (*known, "versions", "dirty", "machine"):
            self._require(getattr(self, name) is not None, name, "must be known of a run")
        assert self.configuration is not None
        sections = {"model", "data", "training"}
        self._require(sections <= set(self.configuration), "configuration", f"must hold {', '.join(sorted(sections))}")
        self._require({"total", "embedding", "body"} <= set(self.parameters), "parameters", "must be counted")

    def _require(self, condition: bool, name: str, what: str) -> None:
        if not condition:
            raise RecordError(f"{self.entry}: {name} is {getattr(self, name)!r}, but {what}")

    @property
    def file_name(self) -> str:
        """`<entry>-<seed>.json`; trials of learning rates in a folder of their own."""
        if self.source == FORMER:
            rate = "" if self.purpose == RESULT else f"-lr{self.learning_rate:g}"
            return f"{self.purpose + '/' if rate else ''}{self.entry}{rate}-former.json"
        return record_name(self.entry, self.seed or 0, self.learning_rate if self.purpose == TUNING else None)

    def to_json(self) -> str:
        """As it is written; a pair of a curve stays on its line."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        return re.sub(r"\[\s+([-+.\de]+),\s+([-+.\de]+)\s+\]", r"[\1, \2]", text) + "\n"


def record_name(entry: str, seed: int, tuning_rate: float | None = None) -> str:
    """File of a run's record below the folder of its page."""
    return f"{entry}-{seed}.json" if tuning_rate is None else f"{TUNING}/{entry}-lr{tuning_rate:g}-{seed}.json"


def read_record(path: Path) -> Record:
    """
    Raises:
        RecordError: naming the file, if it is none or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("schema") != SCHEMA:
            raise RecordError(f"schema is {content.get('schema')!r}, but must be {SCHEMA}")
        return Record(**content)
    except (ValueError, TypeError) as error:
        raise RecordError(f"{path}: {error}") from error


def read_page(page: str, records: Path = RECORDS) -> list[Record]:
    """Every record of a page, by name of the file."""
    return [read_record(path) for path in sorted((records / page).rglob("*.json"))]


def write_record(record: Record, records: Path = RECORDS, replace: bool = False) -> Path:
    """Write a record below the folder of its page, whole or not at all.

    Args:
        replace: write it also where the one that is there says more.

    Raises:
        RecordError: if there is one of a longer run, or with more metrics, or it is too large.
    """
    path = records / record.page / record.file_name
    if path.exists() and not replace:
        other = read_record(path)
        lost = sorted(other.metrics.keys() - record.metrics.keys())
        if (record.bytes_seen or 0) < (other.bytes_seen or 0) or lost:
            reason = (
                f"it has no {', '.join(lost)}" if lost else f"{record.bytes_seen:,} bytes, there {other.bytes_seen:,}"
            )
            raise RecordError(f"{path} holds a more complete run ({reason}); delete it first.")
    text = record.to_json()
    if len(text.encode()) > MAX_BYTES:
        raise RecordError(f"{path} would have {len(text.encode()):,} bytes, but a record is small: {MAX_BYTES:,}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    return path


# ---- What a record says about a run ----


def portable(value: Any) -> Any:
    """A configuration without secrets, and with paths as a clone has them: below the repository, or names alone."""
    if isinstance(value, dict):
        return {str(name): portable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        return value if isinstance(value, bool | int | float | None) else str(value)
    value = redact(value)
    if os.path.isabs(value):
        path = Path(value)
        return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else path.name
    return value


def thin(points: Sequence[tuple[int, float]]) -> list[list[float | int]]:
    """At most `MAX_CURVE_POINTS` of a curve, first and last among them; values to six digits."""
    count = min(len(points), MAX_CURVE_POINTS)
    places = sorted({round(i * (len(points) - 1) / max(count - 1, 1)) for i in range(count)})
    return [[points[i][0], float(f"{points[i][1]:.6g}")] for i in places]


def curves(metrics: Iterable[dict[str, Any]], names: Sequence[str]) -> dict[str, list[list[float | int]]]:
    """Of a run's log, the values whose names are among `names` or begin with one of them that ends with `*`."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in metrics:
        for name, value in line.items():
            listed = any(name == one or (one.endswith("*") and name.startswith(one[:-1])) for one in names)
            if listed and isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, []).append((line["step"], float(value)))
    return {name: thin(values) for name, values in points.items()}


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """`total`, `embedding` (tables that are looked up) and `body` (all else, a tied head left out)."""
    tables = {
        id(m.weight): m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag)
    }
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = sum(table.numel() for table in tables.values())
    return {"total": total, "embedding": embedding, "body": total - embedding}


def circumstances() -> dict[str, Any]:
    """What a record says of where it was made: `versions`, `revision`, `dirty` and `machine`."""
    commit, dirty = revision()
    return {"versions": versions(), "revision": commit, "dirty": dirty, "machine": machine()}


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **found}


def revision() -> tuple[str | None, bool]:
    """Of the repository, and whether it has changes in what is tracked, but for records, which no run reads."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":(exclude){RECORDS}")
        return git("rev-parse", "HEAD"), bool(changes)
    except (OSError, subprocess.SubprocessError):
        return None, True


def machine() -> dict[str, Any]:
    """CPU model, capabilities, cores, threads, and the accelerator if there is one."""
    model, flags = platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() in ("flags", "Features"):
                flags = set(value.split())
    except OSError:
        pass
    return {
        "cpu": model,
        "capabilities": [name for name in CAPABILITIES if name in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
    }
