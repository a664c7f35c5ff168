"""Embed texts with EncodZall through sentence-transformers, and find the nearest one to each noisy text.

python examples/embed_texts.py [org/name or run folder]
"""

import sys
from pathlib import Path

from sentence_transformers import SentenceTransformer

import latentlm  # noqa: F401  (knows the models in hub_configs; those of the Hub load without it)

name = sys.argv[1] if len(sys.argv) > 1 else "hub_configs/encodzall-wikitext2"
if name.startswith(("runs/", "hub_configs/")) and not Path(name).is_dir():
    sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
model = SentenceTransformer(name, trust_remote_code=True)
texts = ["The function returns a new list.", "An exception is raised.", "A module is a file of Python code."]
noisy = ["teh funtion retums a new list", "An excepton is rasied.", "A modul is a flie of python code"]
similarity = model.similarity(model.encode(noisy), model.encode(texts))  # cosines (noisy, texts)
for text, row in zip(noisy, similarity, strict=True):
    print(f"nearest: {text!r} → {texts[row.argmax()]!r} ({row.max():.2f})")
