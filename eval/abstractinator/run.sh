#!/usr/bin/env bash
# The runs behind docs/results/abstractinator.md, one after the other; run again, it continues where it stopped. Parts
# side by side share the work.
#
#     bash eval/abstractinator/run.sh [one-level|two-levels|flat|blt|sweep|slower] [TEXT FOLDER]
set -euo pipefail
part=${1:-one-level}
text=${2:-../shared/data/wikitext2}
runs=${RUNS:-runs/abstractinator}
here=$(dirname "${BASH_SOURCE[0]}")
data=(--dataset "$text/wiki.train.txt" --validation_dataset "$text/wiki.valid.txt")
mkdir -p "$runs"
train() { # recipe, run, fields
    run_with "-m latentlm.train" "$@"
}
run_with() { # program, recipe, run, fields
    echo "$(date +%T) $3"
    python $1 "$here/$2.yaml" "${data[@]}" --output_dir "$runs/$3" "${@:4}" >> "$runs/$3.log" 2>&1
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
one-level | two-levels | flat) # three learning rates at 0.2 MB each, then the best one
    for rate in 1e-3 2e-3 4e-3; do
        train "$part" "rate-$part-$rate" --max_steps 100 --eval_steps 100 --warmup_steps 10 --learning_rate $rate --sample_prompts 0
    done
    train "$part" "$part" --learning_rate "$(best "$part")" ;;
blt) # the flat model's recipe; without samples, since it has no cache
    for rate in 1e-3 2e-3 4e-3; do
        run_with "$here/blt.py" flat "rate-blt-$rate" --max_steps 100 --eval_steps 100 --warmup_steps 10 \
            --learning_rate $rate --sample_prompts 0
    done
    run_with "$here/blt.py" flat blt --learning_rate "$(best blt)" --sample_prompts 0 ;;
sweep) # how segments are cut, and the other form of attention: 0.6 MB each
    short() { # run, what stands for `delta: 0.5`, fields
        sed "s/delta: 0.5/$2/" "$here/one-level.yaml" > "$runs/$1.yaml"
        here=$runs train "$1" "$1" --max_steps 300 --eval_steps 150 --learning_rate "$(best one-level)" "${@:3}"
    }
    short sweep-delta-0.5 "delta: 0.5"
    short sweep-latent "delta: 0.5" --attention_form latent
    for delta in 0.2 1.0; do short "sweep-delta-$delta" "delta: $delta"; done
    short sweep-target-6 "delta: 0.5\n      target_segment_length: 6.0" ;;
slower) # one level at half the rate that its trials choose
    train one-level one-level-1e-3 --learning_rate 1e-3 ;;
esac
