"""Train the small decoder-only model on your own text, with a byte-level BPE trained on it.

python examples/own_data.py 'letters/*.txt' [--output_dir runs/own_data] [--any_field value ...]
python examples/own_data.py posts.jsonl --text_column body

Each .txt file is a document (or give --document_start, a pattern of lines that open one), each line of a .jsonl a row.
"""

import sys
from pathlib import Path

from latentlm.cli.arguments import parse_command_line
from latentlm.runs import load_recipe
from latentlm.training.run import train

RECIPE = Path(__file__).parent.parent / "hub_configs" / "decoder-only-tiny" / "recipe.yaml"

path, fields = parse_command_line(sys.argv[1:])
if path is None:
    sys.exit(__doc__)
mine = {"dataset": path, "tokenizer": "bpe", "tokenizer_vocab_size": 2048, "output_dir": "runs/own_data"}
train(load_recipe(RECIPE, {**mine, **fields}))
