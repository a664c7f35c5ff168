"""Fill masked words and characters with EncodZall: <mask> is a word; <vowel>, <consonant>, <nonspace> and <any> are one
character each.

python examples/fill_words.py [org/name or run folder] [TEXT ...]
"""

import sys
from pathlib import Path

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import latentlm  # noqa: F401  (knows the models in hub_configs; those of the Hub load without it)

name = sys.argv[1] if len(sys.argv) > 1 else "hub_configs/encodzall-wikitext2"
if name.startswith(("runs/", "hub_configs/")) and not Path(name).is_dir():
    sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
texts = sys.argv[2:] or ["The alb<vowel>m was <any>el<any>ased <mask> 2004 .", "The first w<vowel>m<vowel>n to win ."]
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=True)
for text, words in zip(texts, model.fill_mask(texts, tokenizer, top_k=3), strict=True):
    print(text)
    for guesses in words:
        print("  filled: " + ", ".join(f"{guess} ({score:.2f} nats)" for guess, score in guesses))
