#!/usr/bin/env bash
# The runs behind docs/results/encodzall.md, one after the other; run again, it continues where it stopped. Two parts
# side by side share the work: bash eval/encodzall/run.sh phases & bash eval/encodzall/run.sh encoders
#
#     bash eval/encodzall/run.sh [rates|phases|control|frozen|encoders|sizes] [TEXT FOLDER]
set -euo pipefail
part=${1:-phases}
text=${2:-../shared/data/wikitext2}
runs=${RUNS:-runs/encodzall}
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
encoder() { # encoder, run, fields: realistic noise of one strength, so that all see the same
    local program="-m latentlm.train"
    [ "$1" = encodzall ] || program="$here/baselines.py $1"
    run_with "$program" realistic "$2" --noise_set_point null "${@:3}"
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
rates) # of the masks: 4 rows a step, and 8 of them for comparison
    for rate in 1e-3 2e-3 4e-3; do
        train masks "rate-masks-$rate" --max_steps 480 --warmup_steps 48 --eval_steps 120 --learning_rate $rate
    done ;;
phases)
    train masks masks
    train realistic masks-realistic --from_pretrained "$runs/masks" ;;
frozen) # the original's accident
    run_with "$here/train_frozen.py" masks frozen-masks ;;
control) # as many bytes as both phases, without masks
    train realistic realistic --max_steps 2800 ;;
encoders) # EncodZall's encoders, sub-word pieces and convolutions: rates first, then each with its best
    for kind in encodzall pieces convolutions; do
        for rate in 5e-4 1e-3 2e-3; do
            encoder $kind "rate-$kind-$rate" --max_steps 200 --eval_steps 200 --learning_rate $rate
        done
        encoder $kind "encoder-$kind" --max_steps 1200 --eval_steps 400 --learning_rate "$(best $kind)"
    done ;;
sizes) # the loop at three sizes; `masks` is the largest one
    train masks size-tiny --max_steps 1600 --hidden_size 96 --intermediate_size 192
    train masks size-small --max_steps 1600 --hidden_size 144 --intermediate_size 432 ;;
esac
