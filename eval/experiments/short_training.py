"""What happens inside of small models while they learn, of which a finished model says nothing.

    python eval/experiments/short_training.py embeddings masks [--steps 200] [--seed 0]

- embeddings: gradients and updates of the tables of tokens and positions, and how these lie to each other, with and
  without position subtraction and embedding loss: auto-regressive encoder-decoder, 2 + 2 layers of width 64.
- masks: values of LearnedDropout's masks and the gradients that reach below them, where the output is multiplied by M
  itself, which the original warns of, and where M is rounded: decoder-only, 4 layers of width 64.

AdamW, learning rate 2e-3, 4 rows of 128 bytes a step, each read once. A record of each variant in eval/records/inside.
"""

import argparse
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import torch
from measures.masks import mask_modules, share_between, watch_gradients
from records import REPOSITORY, RUN, Record, circumstances, corpora, count_parameters, portable, write_record
from torch import nn

from latentlm import AREncoderDecoderConfig, AREncoderDecoderForCausalLM, DecoderOnlyConfig, DecoderOnlyForCausalLM
from latentlm.models.block_learned_dropout import record_masks

PAGE = "inside"
TEXT = "wikitext2/wiki.train.txt"
ROWS, LENGTH, RATE, WARM_UP, LAST = 4, 128, 2e-3, 20, 50
SIZES = {"vocab_size": 256, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
SUBTRACTION = {"position_subtraction": "plain"}
LOSS = {"embedding_loss": "mse", "embedding_loss_weight": 1.0}
DROPOUT = {"learned_dropout": "bernoulli", "mask_l1_loss_weight": 0.0}
HALF = {"learned_dropout_shift": torch.pi / 2}
ENTROPY = {"mask_entropy_loss_weight": 1.0}

EMBEDDINGS = {
    "plain": ("plain", {}),
    "subtraction": ("+ subtraction", SUBTRACTION),
    "loss": ("+ MSE (1)", LOSS),
    "both": ("+ subtraction + MSE (1)", SUBTRACTION | LOSS),
}
MASKS = {
    "none": ("no mask", {}, False),
    "scaled": ("multiplied by M", DROPOUT | HALF, True),
    "scaled-entropy": ("multiplied by M, H", DROPOUT | HALF | ENTROPY, True),
    "rounded": ("rounded", DROPOUT | HALF, False),
}


def batches() -> Iterator[torch.Tensor]:
    """Rows of the text in their order, `(ROWS, LENGTH)`."""
    data = torch.frombuffer(bytearray((corpora() / TEXT).read_bytes()), dtype=torch.uint8).long()
    return iter(data[: len(data) // (ROWS * LENGTH) * ROWS * LENGTH].view(-1, ROWS, LENGTH))


def train(model: Any, steps: int, look: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Means over the steps after warm-up of what `look` says after the backward pass, and the loss of the last ones."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    values, losses = defaultdict(list), []
    tables = {name: model.get_parameter(f"model.embed_{name}.weight") for name in ("tokens", "positions")}
    for step, ids in enumerate(itertools.islice(batches(), steps)):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP)
        output = model.train()(input_ids=ids, labels=ids)
        output.loss.backward()
        before = {name: table.detach().clone() for name, table in tables.items()}
        seen = look() | {f"{name}_gradient": row_size(table.grad) for name, table in tables.items()}
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for name, table in tables.items():
            seen[f"{name}_update"] = row_size(table.detach() - before[name]) / row_size(before[name])
        losses.append(output.lm_loss.item())
        if step >= WARM_UP:
            for name, value in seen.items():
                values[name].append(value)
    return {name: fmean(seen) for name, seen in values.items()} | {"lm_loss": fmean(losses[-LAST:])}


def row_size(table: torch.Tensor | None) -> float:
    """Root mean square of the lengths of a table's vectors."""
    assert table is not None
    return table.square().sum(-1).mean().sqrt().item()


# ---- Tables ----


def frequency(model: Any) -> dict[str, float]:
    """Shares of a table's vectors that a step gives a gradient."""
    tables = {"tokens": model.model.embed_tokens, "positions": model.model.embed_positions}
    return {f"{name}_reached": table.weight.grad.ne(0).any(-1).float().mean().item() for name, table in tables.items()}


@torch.no_grad()
def relation(model: Any) -> dict[str, float]:
    """How tokens that occur in the text and positions lie to each other."""
    occurring = torch.unique(torch.cat([batch.flatten() for batch in itertools.islice(batches(), 100)]))
    tokens, positions = model.model.embed_tokens.weight[occurring], model.model.embed_positions.weight[:LENGTH]
    unit = [nn.functional.normalize(table, dim=-1) for table in (tokens, positions)]
    # Of the positions' variance, the share in the directions that hold most of the tokens': 1/4 by chance.
    directions = torch.linalg.svd(tokens - tokens.mean(0)).Vh[: tokens.shape[1] // 4]
    centred = positions - positions.mean(0)
    return {
        "tokens_length": row_size(tokens),
        "positions_length": row_size(positions),
        "cosine": (unit[0] @ unit[1].T).abs().mean().item(),
        "neighbours_cosine": (unit[1][1:] * unit[1][:-1]).sum(-1).mean().item(),
        "overlap": ((centred @ directions.T).square().sum() / centred.square().sum()).item(),
    }


def embeddings(name: str, steps: int, seed: int) -> tuple[str, Any, dict[str, float]]:
    label, fields = EMBEDDINGS[name]
    config = AREncoderDecoderConfig(num_encoder_layers=2, num_decoder_layers=2, **SIZES, **fields)
    torch.manual_seed(seed)
    model = AREncoderDecoderForCausalLM(config)
    metrics = train(model, steps, lambda: frequency(model))
    return label, model, metrics | relation(model)


# ---- Masks ----


def masks(name: str, steps: int, seed: int) -> tuple[str, Any, dict[str, float]]:
    label, fields, scales = MASKS[name]
    torch.manual_seed(seed)
    model = DecoderOnlyForCausalLM(DecoderOnlyConfig(num_hidden_layers=4, **SIZES, **fields))
    if scales:
        for module in mask_modules(model):
            module.round = lambda probability: probability
    look = watch_gradients(model.model.layers)
    with record_masks(model) as recorded:
        metrics = train(model, steps, look)
        if recorded:
            metrics["mean_mask"] = torch.cat([mask.flatten() for mask in recorded.values()]).mean().item()
            metrics["between"] = share_between(recorded.values())
    return label, model, metrics


MEASURES = {"embeddings": (embeddings, EMBEDDINGS), "masks": (masks, MASKS)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="+", choices=MEASURES)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    where = circumstances()
    for measure in options.measures:
        run, variants = MEASURES[measure]
        for name in variants:
            start = time.process_time()
            label, model, metrics = run(name, options.steps, options.seed)
            seen, parameters = options.steps * ROWS * (LENGTH - 1), count_parameters(model)
            training = {"optimizer": "adamw", "learning_rate": RATE, "rows": ROWS, "warmup_steps": WARM_UP}
            record = Record(
                PAGE,
                f"{measure}-{name}",
                label,
                source=RUN,
                seed=options.seed,
                configuration={
                    "model": portable(model.config.to_diff_dict()),
                    "data": {"dataset": TEXT, "context_length": LENGTH},
                    "training": training,
                },
                metrics=metrics,
                steps=options.steps,
                seconds=time.process_time() - start,
                flops=6 * parameters["body"] * seen,
                flops_method="6 N a byte",
                parameters=parameters,
                tokens_seen=seen,
                bytes_seen=seen,
                **where,
            )
            print(write_record(record).relative_to(REPOSITORY), record.metrics, flush=True)


if __name__ == "__main__":
    main()
