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
    train realistic masks-realistic-no-contrast $(from masks) --contrastive_loss_weight 0
elif [ "$part" = controls ]; then # as many bytes, without masks; and with an Encoder 1 that never learns
    train realistic realistic --max_steps 1100 --learning_rate 2e-3
    frozen masks frozen-masks
    frozen realistic frozen-masks-realistic $(from frozen-masks)
else # the loop at three sizes, equal bytes
    train masks size-tiny --max_steps 400 --hidden_size 96 --intermediate_size 192
    train masks size-small --max_steps 400
    train masks size-xs --max_steps 400 --hidden_size 256 --intermediate_size 1536 --num_decoder_layers 1 --learning_rate 1e-3
fi
