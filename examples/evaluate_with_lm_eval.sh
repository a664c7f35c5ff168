#!/bin/sh
# Score a model with lm-eval, as it stands; needs `pip install -e '.[eval]'`.
#
#     examples/evaluate_with_lm_eval.sh [org/name or run folder] [more flags of lm_eval run ...]
#
# The task files in eval/tasks read local files where LATENTLM_EVAL_DATA names their folder; see eval/README.md.
set -eu
model=${1:-runs/quickstart}
[ $# -eq 0 ] || shift
case $model in
    runs/*) [ -d "$model" ] || { echo "There is no $model: name a model, or make this run as examples/README.md says." >&2; exit 1; } ;;
esac
python -m lm_eval run --model hf --model_args "pretrained=$model,trust_remote_code=True" \
    --include_path "$(dirname "$0")/../eval/tasks" --tasks lambada_openai --limit 100 "$@"
