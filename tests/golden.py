"""What every architecture and option computes, as a few numbers each: the record that a rebuilt house must reproduce.

`python tests/golden.py` writes golden.json anew; test_golden.py compares. All parameters are random by their names
(`randomise`): who renames one gives its former name in `architectures.RENAMED`.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import encodzall_setup
import torch
from architectures import AUTOENCODER, CAUSAL, PAD, Architecture, Case, build, loss_terms, options, token_ids
from encodzall_setup import OPTIONS, VARIANTS, encode, labels_of

from latentlm import (
    EncodzallForMaskedDenoising,
    EncodzallForSequenceClassification,
    EncodzallForTokenClassification,
    FSQAutoencoderConfig,
    FSQAutoencoderModel,
)

FILE = Path(__file__).with_name("golden.json")
ENCODZALL_OPTIONS = OPTIONS | {"contrastive_loss_weight": 0.5}
AUTOENCODER_OPTIONS: dict[str, Any] = {
    "embedding_size": 4,
    "conv_channels": [4, 8],
    "levels": [5, 5, 5],
    "margin_loss_weight": 0.5,
    "code_entropy_loss_weight": 0.5,
}

Numbers = dict[str, Any]


def digest(values: torch.Tensor) -> list[float]:
    """Mean, root mean square, and a projection, which a change of place would move."""
    values = values.detach().double().flatten()
    weights = torch.cos(0.7 * torch.arange(len(values), dtype=torch.float64) + 0.3)
    numbers = (values.mean(), values.square().mean().sqrt(), (values * weights).mean())
    return [float(f"{number:.8g}") for number in numbers]


def training_step(model: torch.nn.Module, **inputs: Any) -> Numbers:
    """The terms of the loss, the size of the gradient, and the loss after a step along it."""
    model.train()
    torch.manual_seed(0)  # of dropout
    output = model(**inputs)
    terms = {name: float(f"{value.item():.8g}") for name, value in {"loss": output.loss, **loss_terms(output)}.items()}
    output.loss.backward()
    held = [parameter for parameter in model.parameters() if parameter.grad is not None]
    size = torch.stack([parameter.grad.double().norm() for parameter in held]).norm()
    with torch.no_grad():
        for parameter in held:
            parameter -= 1e-2 / size * parameter.grad
    torch.manual_seed(0)
    after = model(**inputs).loss.item()
    return {**terms, "gradient": float(f"{size:.8g}"), "after_a_step": float(f"{after:.8g}")}


def causal_rows() -> dict[str, torch.Tensor]:
    """Two rows of 12 tokens, the first padded on the left."""
    ids = token_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    ids = ids.masked_fill(mask == 0, PAD)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def causal_case(case: Case) -> Numbers:
    rows = causal_rows()
    packed = torch.cat([torch.arange(n) for n in (5, 1, 6)]).expand(2, -1)
    model = case.model()
    with torch.no_grad():
        found = {
            "logits": digest(model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, 4:]),
            "packed": digest(model(token_ids(2, 12), position_ids=packed).logits),
            "hidden_states": [digest(h[1]) for h in model(token_ids(2, 12), output_hidden_states=True).hidden_states],
        }
        generated = model.generate(
            rows["input_ids"], attention_mask=rows["attention_mask"], max_new_tokens=8, do_sample=False
        )
    return {**found, "generated": generated[:, 12:].tolist(), "training": training_step(case.model(), **rows)}


def option_case(architecture: Architecture, fields: dict[str, Any]) -> Numbers:
    model = build(architecture.head_class, architecture.config_class(**fields))
    rows = causal_rows()
    with torch.no_grad():
        logits = digest(model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, 4:])
    return {"logits": logits, "training": training_step(model, **rows)}


def encodzall_case(variant: str = "default", **fields: Any) -> Numbers:
    def model(head: type = EncodzallForMaskedDenoising) -> Any:
        return encodzall_setup.build(variant, head, num_labels=3, **fields)

    inputs = encode()
    longest = fields.get("max_word_bytes", 16)
    word_ids = {} if longest != 16 else {"word_ids": inputs["word_ids"]}
    ids = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], **word_ids}
    clean = {"clean_input_ids": inputs["input_ids"]} if fields.get("contrastive_loss_weight") else {}
    with torch.no_grad():
        output = model()(**ids, labels=labels_of())
        encoded = model().model(**ids)
        found = {
            "logits": digest(output.logits),
            "memory": digest(encoded.last_hidden_state),
            "embeddings": digest(encoded.pooler_output),
            "generated": model().generate(**ids, max_new_tokens=6, do_sample=False).tolist(),
            "text_labels": digest(model(EncodzallForSequenceClassification)(**ids).logits),
            "tags": digest(model(EncodzallForTokenClassification)(**ids).word_logits),
        }
        if output.word_logits is not None:
            found["word_logits"] = digest(output.word_logits)
    return {**found, "training": training_step(model(), **ids, labels=labels_of(), **clean)}


def autoencoder_case(**fields: Any) -> Numbers:
    def model() -> FSQAutoencoderModel:
        return build(FSQAutoencoderModel, FSQAutoencoderConfig(**AUTOENCODER | fields), "eager")

    chunks = token_ids(6, 4, vocab_size=256)
    with torch.no_grad():
        output = model()(chunks)
    codes = {"logits": digest(output.logits), "codes": output.code_index.flatten().tolist()}
    return {**codes, "training": training_step(model(), input_ids=chunks, labels=chunks)}


def cases() -> Iterator[tuple[str, Callable[[], Numbers]]]:
    """Every variant, and every option of every architecture by one other value; options that draw are left out."""
    for row in CAUSAL:
        for variant in row.variants:
            yield f"{row.name}/{variant}", lambda row=row, variant=variant: causal_case(Case(row, variant))
        for name, _, fields in options(row):
            if "dropout=0" not in name:
                yield f"{row.name}/{name}", lambda row=row, fields=fields: option_case(row, fields)
    for variant in VARIANTS:
        yield f"encodzall/{variant}", lambda variant=variant: encodzall_case(variant)
    for name, value in ENCODZALL_OPTIONS.items():
        if "dropout" not in name:
            yield f"encodzall/{name}={value}", lambda name=name, value=value: encodzall_case(**{name: value})
    yield "fsq_autoencoder/default", autoencoder_case
    for name, value in AUTOENCODER_OPTIONS.items():
        yield f"fsq_autoencoder/{name}={value}", lambda name=name, value=value: autoencoder_case(**{name: value})


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(case())}" for name, case in cases()) + "\n}\n")
