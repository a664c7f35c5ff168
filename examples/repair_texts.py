"""Repair noisy texts with EncodZall, word by word: what it does not change is copied to the byte.

python examples/repair_texts.py [org/name or run folder] [TEXT ...]
"""

import sys
from pathlib import Path

from transformers import AutoModelForSeq2SeqLM

import latentlm  # noqa: F401  (knows the models in hub_configs; those of the Hub load without it)

name = sys.argv[1] if len(sys.argv) > 1 else "hub_configs/encodzall-wikitext2"
if name.startswith(("runs/", "hub_configs/")) and not Path(name).is_dir():
    sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
texts = sys.argv[2:] or [
    "The govermnent announced taht the brigde would be rebuilt nxet year .",
    "The old churhc stnads on a hill near the river , and was builtin the 12th century .",
    "It was writen by the band in Febuary and relased in the Untied States .",
]
model = AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=True)
for text, repairs, repaired in zip(texts, model.find_repairs(texts), model.denoise(texts), strict=True):
    print(f"noisy:    {text}\nrepaired: {repaired}")
    data = text.encode()
    for repair in repairs:  # all that are likelier than what is there; `denoise` writes those above its threshold
        old, new = data[repair.start : repair.end].decode().strip(), repair.new.decode().strip()
        written = "" if repair.score > model.config.denoise_threshold else ", left as it is"
        print(f"  {old} → {new}: {repair.score:.1f} nats likelier{written}")
