"""Zero-shot benchmarks through lm-eval. `LATENTLM_EVAL_DATA` names the folder with their files (eval/README.md)."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMITS = {"local_blimp": 50, "lambada_openai,hellaswag,arc_easy": 200}  # documents of a task, of a paradigm
METRICS = {
    "blimp": ("local_blimp", "acc,none"),
    "lambada": ("lambada_openai", "acc,none"),
    "lambada_perplexity": ("lambada_openai", "perplexity,none"),
    "hellaswag": ("hellaswag", "acc_norm,none"),
    "arc_easy": ("arc_easy", "acc_norm,none"),
}


def measure(model: Any, tokenizer: Any, run: Path) -> dict[str, float]:
    """Scores, and the standard error of each over its documents (`…_stderr`)."""
    arguments = f"pretrained={run},trust_remote_code=True,dtype=float32"
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for tasks, limit in LIMITS.items():
            command = [sys.executable, "-m", "latentlm", "evaluate", "--model", "hf", "--model_args", arguments]
            command += ["--tasks", tasks, "--limit", str(limit), "--batch_size", "16", "--output_path", folder]
            subprocess.run(command, check=True)
        for path in Path(folder).rglob("*.json"):
            results |= json.loads(path.read_text(encoding="utf-8"))["results"]
    metrics: dict[str, float] = {}
    for name, (task, key) in METRICS.items():
        values = {name: results[task][key], f"{name}_stderr": results[task].get(key.replace(",", "_stderr,"))}
        metrics |= {one: float(value) for one, value in values.items() if isinstance(value, int | float)}
    return metrics
