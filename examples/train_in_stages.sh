#!/usr/bin/env bash
# Train an Abstractinator in three stages: the entropy model that cuts, compressor and expander over it, and the language
# model on the codes over the frozen base. What follows are fields of the recipes, for all three.
#
#     bash examples/train_in_stages.sh [RUNS] [--field value ...]
set -euo pipefail
runs=${1:-runs}
recipes=$(dirname "${BASH_SOURCE[0]}")/../hub_configs/abstractinator-tiny
stage() { python -m latentlm.train "$recipes/recipe-$1.yaml" --output_dir "$runs/abstractinator-tiny-$1" "${@:2}"; }
stage entropy "${@:2}"
stage base --load_entropy_from "$runs/abstractinator-tiny-entropy" "${@:2}"
stage top --load_base_from "$runs/abstractinator-tiny-base" "${@:2}"
