"""How short can an Abstractinator make a text: as bytes one by one, and as codes with what they leave open.

python examples/compress_text.py [org/name or run folder] [TEXT]
"""

import math
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import latentlm  # noqa: F401  (knows the models in hub_configs; those of the Hub load without it)

name = sys.argv[1] if len(sys.argv) > 1 else "hub_configs/abstractinator-wikitext2"
if name.startswith(("runs/", "hub_configs/")) and not Path(name).is_dir():
    sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
text = sys.argv[2] if len(sys.argv) > 2 else "The album was released in the United Kingdom in 2004 , and sold well ."

tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True).eval()
ids = tokenizer(text, return_tensors="pt").input_ids
size = len(text.encode())

with torch.no_grad():
    next_byte = model(ids, labels=ids).lm_loss.item() * (ids.shape[1] - 1)
print(f"{size} bytes; one by one: {next_byte / math.log(2) / 8:.1f} bytes")
parts = {part: nats.item() / math.log(2) / 8 for part, nats in model.code_lengths(ids).items()}
print("in parts: " + " + ".join(f"{value:.1f} ({part})" for part, value in parts.items()) + " bytes")
for level, compressed in enumerate(model.model.read(ids)[1].levels, 1):
    codes = compressed.quantized.codes[0, : compressed.segments.count[0]].tolist()
    print(f"level {level}: {len(codes)} codes of {size / len(codes):.1f} bytes, {codes[:8]} ...")
