"""Write docs/results/<ablation>.md and its figures from the run folders that run.py left.

    python eval/ablations/report.py ar-encoder-decoder [--runs runs/ablations]

The text around the tables is `results.md` in the ablation's folder; `{name}` in it is replaced by a table. Rows
without runs are listed as not run.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from run import HERE, RESOURCES_FILE, Row, read_rows, run_name
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import latentlm  # noqa: F401 - registers the architectures

REPOSITORY = HERE.parents[1]


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


def results_table(all_runs: list[Runs]) -> str:
    header = ["row", "seeds", "parameters", "train loss", "val loss", "bits per byte", "embedding loss"]
    header += ["gains out / in", "CPU minutes", "MiB"]
    rows = []
    for runs in all_runs:
        embedding = runs.last("eval_embedding_loss")
        gains = [runs.last(f"embedding_loss_{side}_norm_gain")[:1] for side in ("output", "input")]
        rows.append(
            [
                runs.row.label,
                str(len(runs.folders)),
                f"{runs.parameters:,}",
                spread(runs.last("lm_loss")),
                spread(runs.last("eval_loss")),
                spread(runs.last("eval_bits_per_byte"), 4),
                f"{statistics.fmean(embedding):.2g}" if embedding else "–",
                " / ".join(spread(gain, 2) for gain in gains) if any(gains) else "–",
                f"{statistics.fmean(r['cpu_minutes'] for r in runs.resources):.1f}",
                f"{statistics.fmean(r['peak_memory_mib'] for r in runs.resources):.0f}",
            ]
        )
    return table(header, rows)


def tuning_table(by_recipe: dict[str, dict[str, Runs]]) -> str:
    rows = [
        [recipe, rate, spread(runs.last("eval_bits_per_byte")[:1], 4)]
        for recipe, by_rate in by_recipe.items()
        for rate, runs in by_rate.items()
    ]
    return table(["recipe", "learning rate", "bits per byte, seed 0"], rows)


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


def plot_losses(all_runs: list[Runs], path: Path) -> None:
    """Validation bits per byte over training, and training loss, one line per row."""
    figure, axes = plt.subplots(1, 2, figsize=(15, 5))
    colours = plt.get_cmap("tab20").colors
    for runs, colour in zip(all_runs, colours * 2, strict=False):
        for axis, name in zip(axes, ("lm_loss", "eval_bits_per_byte"), strict=True):
            if curve := runs.curve(name):
                axis.plot(*zip(*curve, strict=True), label=runs.row.label, color=colour, linewidth=1.2)
    axes[0].set(xlabel="step", ylabel="training loss (nats per token)")
    axes[1].set(xlabel="step", ylabel="validation bits per byte")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, path)


def embedding_statistics(runs: Runs) -> dict[str, torch.Tensor]:
    """Norms of token and position embeddings, and cosines between every token and every position."""
    weights = load_file(runs.folders[0] / "model.safetensors")
    tokens = next(value for name, value in weights.items() if "embed_tokens" in name or "lm_head" in name)
    positions = next((value for name, value in weights.items() if "embed_positions" in name), None)
    if positions is None:
        return {}
    unit = [torch.nn.functional.normalize(value.float(), dim=-1) for value in (tokens, positions)]
    neighbours = (unit[1][1:] * unit[1][:-1]).sum(-1)
    return {
        "token norm": tokens.float().norm(dim=-1),
        "position norm": positions.float().norm(dim=-1),
        "cosine token–position": (unit[0] @ unit[1].T).flatten()[:: max(1, len(tokens) // 64)],
        "cosine of neighbouring positions": neighbours,
    }


def plot_embeddings(all_runs: list[Runs], path: Path) -> None:
    """Distributions of embedding norms and cosines per variant (first seed)."""
    found = {runs.row.label: stats for runs in all_runs if (stats := embedding_statistics(runs))}
    names = list(next(iter(found.values())))
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 0.32 * len(found) + 2), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        axis.boxplot([stats[name].numpy() for stats in found.values()], orientation="horizontal", showfliers=False)
        axis.set_title(name, fontsize=10)
        axis.set_yticks(range(1, len(found) + 1), list(found), fontsize=8)
    axes[0].invert_yaxis()  # the axes share it
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablation")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    options = parser.parse_args()
    rows, tuning = read_rows(options.ablation)
    first = {recipe: next(row for row in rows if row.recipe == recipe) for recipe in tuning}
    folder = options.runs / options.ablation
    tried = {recipe: finished(first[recipe], rates, folder) for recipe, rates in tuning.items()}
    best = {
        recipe: min(by_rate, key=lambda rate: by_rate[rate].last("eval_bits_per_byte")[0])
        for recipe, by_rate in tried.items()
        if by_rate
    }
    groups: dict[str, list[Runs]] = {}
    missing = []
    for row in rows:
        runs = finished(row, [best[row.recipe]], folder) if row.recipe in best else {}
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
    plot_embeddings(groups["tokens"], figures / f"{options.ablation}-embeddings.png")
    text = (HERE / options.ablation / "results.md").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{" + name + "}", part)
    page = REPOSITORY / f"docs/results/{options.ablation}.md"
    page.write_text(text, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
