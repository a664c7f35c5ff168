"""Fine-tune EncodZall to say of each word of a lower-cased text whether it should be a capital: one label per word. A
tenth of the lines is held out and scored.

python examples/tag_words.py [org/name or run folder] [steps]
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.data import DataCollatorForTokenClassification

name = sys.argv[1] if len(sys.argv) > 1 else "runs/encodzall-tiny"
if name.startswith("runs/") and not Path(name).is_dir():
    sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 200
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
lines = [line.strip() for text in topics.values() for line in text.splitlines() if len(line) > 40][:2000]


def encode(line: str) -> dict[str, list[int]]:
    """The words of a line, each with its label at its first id, and -100 at the others."""
    words = line.split()
    encoded = tokenizer([word.lower() for word in words], is_split_into_words=True, truncation=True)
    labels, previous = [], None
    for word in encoded.word_ids():  # None at the end of the text
        labels.append(-100 if word in (None, previous) else int(words[word][0].isupper()))
        previous = word
    return {**encoded, "labels": labels}


def score(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and F1 of label 1."""
    predicted, labels = prediction.predictions.argmax(-1), prediction.label_ids
    is_word = labels != -100
    predicted, labels = predicted[is_word], labels[is_word]
    return {"accuracy": (predicted == labels).mean(), "f1": 2 * (predicted & labels).sum() / (predicted + labels).sum()}


names = {0: "lower", 1: "capital"}
model = AutoModelForTokenClassification.from_pretrained(name, trust_remote_code=True, id2label=names)
arguments = TrainingArguments(
    "runs/tag-words", max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, logging_steps=50,
    save_strategy="no", report_to="none", use_cpu=True,
)  # fmt: skip
rows = [*map(encode, lines)]
train, held_out = [row for i, row in enumerate(rows) if i % 10], rows[::10]
trainer = Trainer(
    model, arguments, DataCollatorForTokenClassification(tokenizer), train, held_out, compute_metrics=score
)  # fmt: skip
trainer.train()
scores = trainer.evaluate()
print(f"held out: accuracy of words {scores['eval_accuracy']:.3f}, F1 of capitals {scores['eval_f1']:.3f}")
model.save_pretrained("runs/tag-words")
tokenizer.save_pretrained("runs/tag-words")

text = "this module was written in python by guido. it is short."
tag = pipeline("token-classification", "runs/tag-words", trust_remote_code=True, aggregation_strategy="first")
print(", ".join(f"{part['entity_group']}: {text[part['start'] : part['end']]!r}" for part in tag(text)))
