#!/usr/bin/env bash
# An FSQ tokenizer of 32,768 tokens from text files, in two steps: train the autoencoder (run again, it continues where it
# stopped) and give every piece a code. About an hour on two CPU cores with the 16,000 steps here; the original design
# has 100,000.
#
#     [STEPS=16000] [TOKENS=32768] examples/build_fsq_tokenizer.sh OUT TEXT...
#
# In this project: examples/build_fsq_tokenizer.sh runs/fsq/tokenizer ../shared/data/wikitext2/wiki.train.txt \
#                      ../shared/data/tinyshakespeare/input.txt
set -euo pipefail
out=$1
shift
run=$out-autoencoder
mkdir -p "$(dirname "$out")"
cat "$@" > "$out.txt"
python -m latentlm.train hub_configs/fsq-tokenizer-original/recipe.yaml \
    --dataset "$out.txt" --dataset_config null --validation_split null --output_dir "$run" \
    --tokenizer_vocab_size "${TOKENS:-32768}" --learning_rate 2e-3 --lr_scheduler_type cosine --warmup_steps 500 --max_steps "${STEPS:-16000}" --eval_steps 2000
latentlm tokenizer build "$run" "$out"
latentlm tokenizer check "$out" "$@"
