"""Fine-tune EncodZall to tell prose from code, with the Trainer of transformers, and score it on a tenth of the lines
that it has not seen. The data is inside every Python.

python examples/classify_texts.py [org/name or run folder] [steps]
"""

import argparse
import inspect
import sys
from pathlib import Path
from pydoc_data.topics import topics

from transformers import AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction, Trainer, TrainingArguments

import latentlm  # noqa: F401  (knows the models in hub_configs; those of the Hub load without it)

name = sys.argv[1] if len(sys.argv) > 1 else "hub_configs/encodzall-wikitext2"
if name.startswith(("runs/", "hub_configs/")) and not Path(name).is_dir():
    sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 200

prose = [line for text in topics.values() for line in text.splitlines() if len(line) > 40][:2000]
code = [line for line in inspect.getsource(argparse).splitlines() if len(line) > 25][:1000]
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
rows = [
    tokenizer(text.strip(), truncation=True) | {"labels": label}
    for label, texts in enumerate((prose, code))
    for text in texts
]


def score(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and F1 of label 1."""
    predicted, labels = prediction.predictions.argmax(-1), prediction.label_ids
    return {"accuracy": (predicted == labels).mean(), "f1": 2 * (predicted & labels).sum() / (predicted + labels).sum()}


model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True, num_labels=2)
arguments = TrainingArguments(
    "runs/classify-texts", max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, logging_steps=50,
    save_strategy="no", report_to="none", use_cpu=True,
)  # fmt: skip
train, held_out = [row for i, row in enumerate(rows) if i % 10], rows[::10]
trainer = Trainer(
    model=model, args=arguments, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer,
    compute_metrics=score,
)  # fmt: skip
trainer.train()
print("held out: accuracy {eval_accuracy:.3f}, F1 of code {eval_f1:.3f}".format(**trainer.evaluate()))

model.eval()
for text in ("A list is a sequence of items that can be changed.", "for item in self._actions: item.reset()"):
    label = model(**tokenizer(text, return_tensors="pt")).logits.argmax(-1).item()
    print(f"{('prose', 'code')[label]}: {text}")
