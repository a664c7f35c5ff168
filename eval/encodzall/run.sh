#!/usr/bin/env bash
# The runs behind docs/results/encodzall.md, one after the other; run again, it continues where it stopped. Two copies
# side by side share the work: bash eval/encodzall/run.sh pretrained & bash eval/encodzall/run.sh controls
#
#     bash eval/encodzall/run.sh [pretrained|controls|sizes] [TEXT FOLDER]
set -euo pipefail
part=${1:-pretrained}
text=${2:-../shared/data/wikitext2}
runs=${RUNS:-runs/encodzall}
here=$(dirname "${BASH_SOURCE[0]}")
data=(--dataset "$text/wiki.train.txt" --validation_dataset "$text/wiki.valid.txt")
mkdir -p "$runs"
train() { # recipe, run, fields
    echo "$(date +%T) $2"
    python -m latentlm.train "$here/$1.yaml" "${data[@]}" --output_dir "$runs/$2" "${@:3}" >> "$runs/$2.log" 2>&1
}
frozen() {
    echo "$(date +%T) $2"
    python "$here/train_frozen.py" "$here/$1.yaml" "${data[@]}" --output_dir "$runs/$2" "${@:3}" >> "$runs/$2.log" 2>&1
}
from() { echo --from_pretrained "$runs/$1"; }
if [ "$part" = pretrained ]; then
    train masks masks
    train realistic masks-realistic $(from masks)
    frozen masks frozen-masks
elif [ "$part" = controls ]; then # as many bytes as both phases, without masks
    train realistic realistic --max_steps 800 --learning_rate 2e-3
else # the loop at three sizes; `masks` is the middle one
    train masks size-tiny --hidden_size 96 --intermediate_size 192
    train masks size-xs --hidden_size 256 --intermediate_size 1536 --num_decoder_layers 1 --learning_rate 1e-3
fi
