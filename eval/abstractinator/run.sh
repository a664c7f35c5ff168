#!/usr/bin/env bash
# The runs behind docs/results/abstractinator.md, one after the other; run again, it continues where it stopped. Parts
# side by side share the work.
#
#     bash eval/abstractinator/run.sh [one-level|two-levels|flat|sweep|latent] [TEXT FOLDER]
set -euo pipefail
part=${1:-one-level}
text=${2:-../shared/data/wikitext2}
runs=${RUNS:-runs/abstractinator}
here=$(dirname "${BASH_SOURCE[0]}")
data=(--dataset "$text/wiki.train.txt" --validation_dataset "$text/wiki.valid.txt")
mkdir -p "$runs"
train() { # recipe, run, fields
    echo "$(date +%T) $2"
    python -m latentlm.train "$here/$1.yaml" "${data[@]}" --output_dir "$runs/$2" "${@:3}" >> "$runs/$2.log" 2>&1
}
best() { # the learning rate of the trial with the fewest bits per byte at its end
    python - "$runs" "$1" <<'PYTHON'
import json, sys
from pathlib import Path
def bits(path):
    return [e["eval_bits_per_byte"] for line in open(path) if "eval_bits_per_byte" in (e := json.loads(line))][-1]
trials = Path(sys.argv[1]).glob(f"rate-{sys.argv[2]}-*/metrics.jsonl")
print(min(trials, key=bits).parent.name.removeprefix(f"rate-{sys.argv[2]}-"))
PYTHON
}
case $part in
one-level | two-levels | flat) # three learning rates at 0.3 MB each, then the best one
    for rate in 1e-3 2e-3 4e-3; do
        train "$part" "rate-$part-$rate" --max_steps 150 --eval_steps 150 --warmup_steps 15 --learning_rate $rate --sample_prompts 0
    done
    train "$part" "$part" --learning_rate "$(best "$part")" ;;
latent) # the other form of attention
    train one-level latent --attention_form latent --max_steps 500 --learning_rate "$(best one-level)" ;;
esac
