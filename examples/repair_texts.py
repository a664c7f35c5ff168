"""Repair noisy texts, and fill masked words and characters, with EncodZall.

python examples/repair_texts.py [org/name or run folder of phase 2] [of phase 1]
"""

import sys
from pathlib import Path

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

repairs = sys.argv[1] if len(sys.argv) > 1 else "runs/encodzall-tiny-phase-2"
fills = sys.argv[2] if len(sys.argv) > 2 else "runs/encodzall-tiny"
for name in (repairs, fills):
    if name.startswith("runs/") and not Path(name).is_dir():
        sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")

tokenizer = AutoTokenizer.from_pretrained(repairs, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(repairs, trust_remote_code=True)
texts = ["Teh funtion returns a nevv list.", "An excepton is raised if the key is not foumd."]
for text, repaired in zip(texts, model.denoise(texts, tokenizer, num_beams=2), strict=True):
    print(f"repaired: {text!r} → {repaired!r}")

# Only a model of phase 1 has the word decoder. Masks: <mask> is a word; <vowel>, <consonant>, <nonspace> and <any> are
# one character each.
model = AutoModelForSeq2SeqLM.from_pretrained(fills, trust_remote_code=True)
text = "The <mask> returns a n<vowel>w list."
for word in model.fill_mask([text], tokenizer, top_k=3)[0]:
    print("filled: " + ", ".join(f"{guess!r} ({score:.2f} nats)" for guess, score in word))
