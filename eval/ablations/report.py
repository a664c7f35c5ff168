"""Write docs/results/<ablation>.md and its figures from the run folders that run.py left.

    python eval/ablations/report.py ar-encoder-decoder [--runs runs/ablations] [--text FOLDER]

The text around the tables is `results.md` in the ablation's folder; `{name}` in it is replaced by a table. Rows
without runs are listed as not run.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from figures import (
    plot_embeddings,
    plot_losses,
    plot_masks_by_position,
    plot_masks_of_a_sentence,
    plot_masks_over_training,
)
from run import HERE, RESOURCES_FILE, Row, read_rows, run_name
from transformers import AutoConfig, AutoModelForCausalLM

import latentlm  # noqa: F401 - registers the architectures

REPOSITORY = HERE.parents[1]
BITS = "eval_bits_per_byte"


class Runs:
    """The finished runs of one row at one learning rate, one per seed."""

    def __init__(self, row: Row, folders: list[Path]):
        self.row, self.folders = row, folders
        self.metrics = [read_lines(folder / "metrics.jsonl") for folder in folders]
        self.resources = [json.loads((folder / RESOURCES_FILE).read_text()) for folder in folders]

    def last(self, name: str) -> list[float]:
        """The last value logged under `name`, per seed."""
        found = ([entry[name] for entry in metrics if name in entry] for metrics in self.metrics)
        return [values[-1] for values in found if values]

    def lowest(self, name: str) -> list[float]:
        """The lowest value logged under `name`, per seed: where a run would be stopped."""
        found = ([entry[name] for entry in metrics if name in entry] for metrics in self.metrics)
        return [min(values) for values in found if values]

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, mean over seeds) of a logged value."""
        by_step: dict[int, list[float]] = {}
        for metrics in self.metrics:
            for entry in metrics:
                if name in entry:
                    by_step.setdefault(entry["step"], []).append(entry[name])
        return [(step, statistics.fmean(values)) for step, values in sorted(by_step.items())]

    @property
    def parameters(self) -> int:
        """Parameters without the position table, counted on the meta device."""
        config = AutoConfig.from_pretrained(self.folders[0])
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        return sum(p.numel() for name, p in model.named_parameters() if "embed_positions" not in name)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def finished(row: Row, rates: Iterable[str], runs: Path) -> dict[str, Runs]:
    """Finished runs of a row by learning rate."""
    found = {}
    for rate in rates:
        folders = [runs / run_name(row.name, rate, seed) for seed in range(row.seeds)]
        folders = [folder for folder in folders if (folder / RESOURCES_FILE).exists()]
        if folders:
            found[rate] = Runs(row, folders)
    return found


def spread(values: list[float], digits: int = 3) -> str:
    """Mean, and the standard deviation over seeds where there are several."""
    if not values:
        return "–"
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# Heading, and what stands in it for one row; a column is left out of a table in which no row has it.
COLUMNS: list[tuple[str, Callable[[Runs], str]]] = [
    ("seeds", lambda runs: str(len(runs.folders))),
    ("parameters", lambda runs: f"{runs.parameters:,}"),
    ("train loss", lambda runs: spread(runs.last("lm_loss"))),
    ("val loss", lambda runs: spread(runs.last("eval_loss"))),
    ("bits per byte", lambda runs: spread(runs.last(BITS), 4)),
    ("lowest bits per byte", lambda runs: spread(runs.lowest(BITS), 4)),
    ("embedding loss", lambda runs: approximate(runs.last("eval_embedding_loss"))),
    ("gains out / in", lambda runs: gains(runs)),
    ("ones", lambda runs: percent(runs.last("mask_density"))),
    ("M < 0.1", lambda runs: percent(runs.last("mask_near_0"))),
    ("M > 0.9", lambda runs: percent(runs.last("mask_near_1"))),
    ("CPU minutes", lambda runs: f"{statistics.fmean(r['cpu_minutes'] for r in runs.resources):.1f}"),
    ("MiB", lambda runs: f"{statistics.fmean(r['peak_memory_mib'] for r in runs.resources):.0f}"),
]


def approximate(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2g}" if values else "–"


def percent(values: list[float]) -> str:
    return spread([100 * value for value in values], 1)


def gains(runs: Runs) -> str:
    """Of the LayerNorms in the embedding loss."""
    found = [runs.last(f"embedding_loss_{side}_norm_gain")[:1] for side in ("output", "input")]
    return " / ".join(spread(gain, 2) for gain in found) if any(found) else "–"


def results_table(all_runs: list[Runs]) -> str:
    columns = [(heading, [cell(runs) for runs in all_runs]) for heading, cell in COLUMNS]
    columns = [(heading, cells) for heading, cells in columns if any(cell != "–" for cell in cells)]
    rows = zip([runs.row.label for runs in all_runs], *(cells for _, cells in columns), strict=True)
    return table(["row", *(heading for heading, _ in columns)], map(list, rows))


def tuning_table(by_name: dict[str, dict[str, Runs]]) -> str:
    rows = [
        [name, rate, *(spread(values[:1], 4) for values in (runs.lowest(BITS), runs.last(BITS)))]
        for name, by_rate in by_name.items()
        for rate, runs in by_rate.items()
    ]
    return table(["tuning", "learning rate", "lowest bits per byte, seed 0", "at the end"], rows)


# lm-eval task, metric, heading
SCORES = [
    ("local_blimp", "acc,none", "BLiMP"),
    ("lambada_openai", "acc,none", "LAMBADA"),
    ("lambada_openai", "perplexity,none", "LAMBADA perplexity"),
    ("hellaswag", "acc_norm,none", "HellaSwag"),
    ("arc_easy", "acc_norm,none", "ARC-easy"),
]


def scores_table(all_runs: list[Runs]) -> str:
    """What score.sh measured, for the first seed of every row that has it; accuracies in percent."""
    rows = []
    for runs in all_runs:
        found: dict[str, dict] = {}
        for path in sorted(runs.folders[0].glob("lm_eval/*.json")):
            found.update(json.loads(path.read_text(encoding="utf-8"))["results"])
        if found:
            rows.append([runs.row.label, *(score(found.get(task, {}), metric) for task, metric, _ in SCORES)])
    return table(["row", *(heading for _, _, heading in SCORES)], rows)


def score(result: dict, metric: str) -> str:
    if metric not in result:
        return "–"
    if metric.startswith("acc"):
        error = result.get(metric.replace(",", "_stderr,"), "N/A")
        return f"{100 * result[metric]:.1f}" + (f" ± {100 * error:.1f}" if error != "N/A" else "")
    return f"{result[metric]:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablation")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--text", type=Path, default=HERE.parents[2] / "shared/data/wikitext2")
    options = parser.parse_args()
    rows, tuning = read_rows(options.ablation)
    first = {name: next(row for row in rows if row.tuning == name) for name in tuning}
    folder = options.runs / options.ablation
    tried = {name: finished(first[name], rates, folder) for name, rates in tuning.items()}
    best = {
        name: min(by_rate, key=lambda rate: by_rate[rate].lowest(BITS)[0]) for name, by_rate in tried.items() if by_rate
    }
    groups: dict[str, list[Runs]] = {}
    missing = []
    for row in rows:
        runs = finished(row, [best[row.tuning]], folder) if row.tuning in best else {}
        if runs:
            groups.setdefault(row.group, []).append(next(iter(runs.values())))
        else:
            missing.append(row.label)
    figures = REPOSITORY / "docs/results/figures"
    parts = {"tuning": tuning_table(tried), "missing": ", ".join(missing) or "none"}
    for group, runs in groups.items():
        parts[group] = results_table(runs)
        parts[f"{group}-scores"] = scores_table(runs)
        plot_losses(runs, figures / f"{options.ablation}-{group}.png")
    if "tokens" in groups:
        plot_embeddings(groups["tokens"], figures / f"{options.ablation}-embeddings.png")
    masked = [runs for group in groups.values() for runs in group if runs.last("mask_density")]
    if masked:
        plot_masks_over_training(masked, figures / f"{options.ablation}-masks-over-training.png")
        path = figures / f"{options.ablation}-masks-by-position.png"
        plot_masks_by_position(masked, options.text / "wiki.valid.txt", path)
        pictured = [runs for runs in masked if runs.row.picture]
        plot_masks_of_a_sentence(pictured, figures / f"{options.ablation}-masks-of-a-sentence.png")
    text = (HERE / options.ablation / "results.md").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{" + name + "}", part)
    page = REPOSITORY / f"docs/results/{options.ablation}.md"
    page.write_text(text, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
