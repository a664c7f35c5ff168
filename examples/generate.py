"""Continue prompts of different lengths in one batch: greedily, with beams, sampled; then a stream of text.

python examples/generate.py [org/name or run folder] [prompt ...]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

name = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"
if name.startswith("runs/") and not Path(name).is_dir():
    sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
prompts = sys.argv[2:] or ["The import statement", "A dictionary"]
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)

inputs = tokenizer(prompts, return_tensors="pt", padding=True)  # the attention mask says what is padding
torch.manual_seed(0)
for how, options in {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 4},
    "sampled": {"do_sample": True, "temperature": 0.7, "top_p": 0.95},
}.items():
    output = model.generate(**inputs, max_new_tokens=60, **options)
    for text in tokenizer.batch_decode(output, skip_special_tokens=True):
        print(f"{how}: {text!r}")

print("stream:")
model.generate(**tokenizer(prompts[0], return_tensors="pt"), max_new_tokens=60, streamer=TextStreamer(tokenizer))
