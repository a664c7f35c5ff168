"""Fine-tune EncodZall to say of each word of a lower-cased text whether it should be a capital: one label per word.

python examples/tag_words.py [org/name or run folder] [steps]
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, Trainer, TrainingArguments

name = sys.argv[1] if len(sys.argv) > 1 else "runs/encodzall-tiny"
if name.startswith("runs/") and not Path(name).is_dir():
    sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 200
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
lines = [line.strip() for text in topics.values() for line in text.splitlines() if len(line) > 40][:2000]


def collate(batch: list[str]) -> dict[str, torch.Tensor]:
    inputs = tokenizer([text.lower() for text in batch], padding=True, truncation=True, return_tensors="pt")
    words = inputs["word_ids"]
    labels = torch.full((len(batch), int(words.max()) + 1), -100)
    for row, text in enumerate(batch):
        for word in range(int(words[row].max())):  # the last word is the end of the text
            first = int((words[row] == word).nonzero()[0])
            labels[row, word] = int(text.encode()[first : first + 1].isupper())
    return {**inputs, "labels": labels}


model = AutoModelForTokenClassification.from_pretrained(name, trust_remote_code=True, num_labels=2)
arguments = TrainingArguments(
    "runs/tag-words", max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, logging_steps=50,
    save_strategy="no", report_to="none", use_cpu=True, remove_unused_columns=False,
)  # fmt: skip
Trainer(model=model, args=arguments, train_dataset=lines, data_collator=collate).train()

text = "this module was written in python by guido. it is short."
labels = model.eval()(**tokenizer(text, return_tensors="pt")).logits[0].argmax(-1).tolist()
print(" ".join(w.capitalize() if label else w for w, label in zip(text.split(), labels, strict=False)))
