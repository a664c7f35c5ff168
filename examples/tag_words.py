"""Fine-tune EncodZall to say which words of a lower-cased text should be capitals, and score it on held-out lines.

python examples/tag_words.py [org/name or run folder] [steps]
"""

import sys
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

from transformers import AutoModelForTokenClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline
from transformers.data import DataCollatorForTokenClassification

import latentlm  # noqa: F401  (knows the models in hub_configs; those of the Hub load without it)

name = sys.argv[1] if len(sys.argv) > 1 else "hub_configs/encodzall-wikitext2"
if name.startswith(("runs/", "hub_configs/")) and not Path(name).is_dir():
    sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 200
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
lines = [line.strip() for text in topics.values() for line in text.splitlines() if len(line) > 40][:2000]


def encode(line):
    """The words of a line, each with its label at its first id, and -100 at the others."""
    words = line.split()
    encoded = tokenizer([word.lower() for word in words], is_split_into_words=True, truncation=True)
    ids = [None, *encoded.word_ids()]  # None at the end of the text
    labels = [-100 if w in (None, last) else int(words[w][0].isupper()) for last, w in pairwise(ids)]
    return {**encoded, "labels": labels}


def score(prediction):
    """Accuracy of words, and F1 of capitals."""
    is_word = prediction.label_ids != -100
    right, found = prediction.label_ids[is_word], prediction.predictions.argmax(-1)[is_word]
    return {"accuracy": (found == right).mean(), "f1": 2 * (found & right).sum() / (found + right).sum()}


names = {0: "lower", 1: "capital"}
model = AutoModelForTokenClassification.from_pretrained(name, trust_remote_code=True, id2label=names)
arguments = TrainingArguments(
    "runs/tag-words", max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, logging_steps=50,
    save_strategy="no", report_to="none", use_cpu=True,
)  # fmt: skip
train, held_out = [[encode(line) for i, line in enumerate(lines) if (i % 10 == 0) == held] for held in (False, True)]
collator = DataCollatorForTokenClassification(tokenizer)
trainer = Trainer(model, arguments, collator, train, held_out, tokenizer, compute_metrics=score)
trainer.train()
print("held out: accuracy of words {eval_accuracy:.3f}, F1 of capitals {eval_f1:.3f}".format(**trainer.evaluate()))
trainer.save_model()
text = "this module was written in python by guido. it is short."
tag = pipeline("token-classification", "runs/tag-words", trust_remote_code=True, aggregation_strategy="first")
print(", ".join(f"{part['entity_group']}: {text[part['start'] : part['end']]!r}" for part in tag(text)))
