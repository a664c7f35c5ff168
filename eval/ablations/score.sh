#!/usr/bin/env bash
# Score finished runs with lm-eval; the results land in each run folder, where report.py finds them.
#   eval/ablations/score.sh RUN_FOLDER...          about 10 minutes a run on 2 cores
# LATENTLM_EVAL_DATA names the folder with the benchmark files (eval/README.md); LIMIT_BLIMP and LIMIT the number of
# documents per paradigm and per task.
set -euo pipefail
cd "$(dirname "$0")/../.."
for run in "$@"; do
    model="pretrained=$run,trust_remote_code=True,dtype=float32"
    latentlm evaluate --model hf --model_args "$model" --batch_size 64 --device cpu \
        --tasks local_blimp --limit "${LIMIT_BLIMP:-100}" --output_path "$run/lm_eval/blimp.json"
    latentlm evaluate --model hf --model_args "$model" --batch_size 16 --device cpu \
        --tasks lambada_openai,hellaswag,arc_easy --limit "${LIMIT:-300}" --output_path "$run/lm_eval/tasks.json"
done
