"""Load a published model without latentlm installed, and ask which of two sentences it finds more likely.

python examples/load_from_hub.py [org/name or run folder]
"""

import math
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

name = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"
if name.startswith("runs/") and not Path(name).is_dir():
    sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
# The code in the repository runs on your machine: read it first, and pin what you read with revision="<commit>".
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
print(f"{type(model).__name__}, {model.num_parameters():,} parameters, {model.config.max_position_embeddings} tokens")

for text in ("The function returns a new list.", "The list new a returns function."):
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        loss = model(**inputs, labels=inputs.input_ids).loss.item()  # nats per predicted token
    bits = loss * (inputs.input_ids.shape[1] - 1) / math.log(2)
    print(f"{bits / len(text.encode()):.3f} bits per byte: {text}")
