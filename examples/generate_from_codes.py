"""Continue prompts with an Abstractinator: byte by byte, and by codes that are expanded to bytes.

python examples/generate_from_codes.py [org/name or run folder]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import latentlm  # noqa: F401  (knows the models in hub_configs; those of the Hub load without it)

name = sys.argv[1] if len(sys.argv) > 1 else "hub_configs/abstractinator-wikitext2"
if name.startswith(("runs/", "hub_configs/")) and not Path(name).is_dir():
    sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
prompts = ["The song was released in", "The town lies"]

tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True).eval()
torch.manual_seed(0)
inputs = tokenizer(prompts, padding=True, return_tensors="pt")
for text in tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=40), skip_special_tokens=True):
    print(f"byte by byte: {text!r}")
starts = [prompt.encode() for prompt in prompts]
for text in model.generate_bytes(starts, max_new_bytes=40, top_p=0.9, byte_temperature=0.7):
    print(f"from codes:   {text.decode('utf-8', 'replace')!r}")
