"""LearnedDropout where masks lie at other places than tokens: EncodZall's words, the Abstractinator's levels."""

import math

import pytest
import torch
from architectures import ARCHITECTURES, Case, token_ids
from training_setup import Rows, Texts, make_trainer, metrics_of

from latentlm.models.block_learned_dropout import LearnedDropout, record_masks
from latentlm.runs import RecipeError

[ENCODZALL] = [row for row in ARCHITECTURES if row.name == "encodzall"]
[ABSTRACTINATOR] = [row for row in ARCHITECTURES if row.name == "abstractinator"]
BOTH = {"mask_entropy_loss_weight": 0.7, "mask_l1_loss_weight": 0.3}


def costs(mask: torch.Tensor) -> torch.Tensor:
    """-M log2 M and M^2 / 2, means over the channels of `(..., M)`: `(..., 2)`."""
    entropy = (-mask * mask.clamp(min=1e-6).log2()).mean(-1)
    return torch.stack((entropy, mask.square().mean(-1) / 2), -1)


def assert_losses(output, expected: torch.Tensor) -> None:
    for name, value in zip(("mask_entropy_loss", "mask_l1_loss"), expected.tolist(), strict=True):
        assert output[name].item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("distinct", [False, True])
def test_in_encodzall_a_texts_bytes_and_words_count_as_often_as_it_has_symbols(distinct: bool):
    """Also where equal words are encoded once; in evaluation penalties are reported but not part of the loss."""
    model = Case(ENCODZALL, "learned_dropout").model(**BOTH, num_word_encoder_layers=2, num_decoder_layers=2)
    batch = Case(ENCODZALL, "learned_dropout").batch(3)
    batch["input_ids"][1] = batch["input_ids"][0]  # whose words are equal
    batch["attention_mask"][1] = batch["attention_mask"][0]
    batch["labels"][1] = batch["labels"][0]
    batch.pop("clean_input_ids")
    packed = model.train(not distinct).pack(**batch)
    with torch.set_grad_enabled(not distinct):
        model.eval()
        with record_masks(model) as masks:
            output = model(**batch, **packed)
    packing, spelling = packed["packing"], packed["spelling"]
    assert (packing["vector"] < packing["vector"].numel()).sum() > packing["word"].unique().numel() - 1 or not distinct
    modules = [name for name, module in model.named_modules() if isinstance(module, LearnedDropout)]
    assert len(modules) == 2 + 1 + 2 + 2 and masks.keys() == set(modules)
    symbols = (batch["labels"] != -100).sum(1)
    totals = []
    for name, mask in masks.items():
        values, total = costs(mask), torch.zeros(2)
        for text, count in enumerate(symbols.tolist()):
            if name.startswith("decoder."):
                total = total + values[text][batch["labels"][text] != -100].sum(0)
                continue
            lengths = packing["lengths"][text]
            words = range(int((lengths > 0).sum()))
            if name.startswith("model.context_encoder."):
                means = [values[text, word] for word in words]
                total = total + count * torch.stack(means).mean(0)
            elif name.startswith("model.word_encoder."):
                slots = [values[packing["word"] == packing["vector"][text, word]] for word in words]
                assert [len(part) for part in slots] == [int(lengths[word]) for word in words]
                total = total + count * torch.cat(slots).mean(0)
            else:
                place = text * packing["lengths"].shape[1]
                slots = [values[spelling["word"] == place + word] for word in words]
                total = total + sum(part.mean(0) * lengths[word] for word, part in enumerate(slots))
        totals.append(total / symbols.sum())
    assert_losses(output, torch.stack(totals).mean(0))
    assert output.loss.item() == output.sequence_loss.item()
    output = model.train()(**batch)
    config = model.config
    expected = config.sequence_loss_weight * output.sequence_loss + config.word_loss_weight * output.word_loss
    expected = expected + 0.7 * output.mask_entropy_loss + 0.3 * output.mask_l1_loss
    torch.testing.assert_close(output.loss, expected)


def test_in_the_abstractinator_masks_count_as_often_as_bytes_are_predicted():
    """At each level those at a symbol as often as there are bytes in the symbol that comes next."""
    model = Case(ABSTRACTINATOR, "learned_dropout").model(**BOTH)
    ids = token_ids(2, 12)
    labels = ids.clone()
    labels[0, 5:7] = -100
    with record_masks(model) as masks:
        output = model(ids, labels=labels)
    pyramid = model.model.read(ids)[1]
    predicted = [(labels[row, 1:] != -100).int().tolist() + [0] for row in range(2)]  # by the symbol before
    totals, count = [], (labels[:, 1:] != -100).sum()
    for level in range(3):
        names = [name for name in masks if f"levels.{level}." in name] if level < 2 else ["top"]
        assert len(names) == (3 if level < 2 else 1)
        for name in names:
            mask = next(value for key, value in masks.items() if name in key)
            total = torch.zeros(2)
            for row in range(2):  # the expander also reads the true codes, after those
                for position, weight in enumerate(predicted[row]):
                    total = total + weight * costs(mask[row, position])
            totals.append(total / count)
        assert sum(map(sum, predicted)) == count
        if level < 2:
            index, above = pyramid.levels[level].segments.index, []
            for row in range(2):
                weights = [0] * int(pyramid.levels[level].segments.count[row])
                for position, weight in enumerate(predicted[row]):
                    if weight:
                        weights[index[row, position + 1]] += weight
                above.append([*weights, 0])
            predicted = above
    assert_losses(output, torch.stack(totals).mean(0))
    assert output.loss.item() == output.lm_loss.item()
    config, output = model.config, model.train()(ids, labels=labels)
    terms = {name: 1.0 for name in ("lm_loss", "reconstruction_loss", "vq_loss", "entropy_loss", "code_lm_loss")}
    expected = sum(weight * output[name] for name, weight in terms.items())
    expected = expected + 0.7 * output.mask_entropy_loss + 0.3 * output.mask_l1_loss
    assert config.lm_loss_weight == config.vq_loss_weight == 1.0
    torch.testing.assert_close(output.loss, expected)


def test_the_classification_heads_have_masks_but_no_penalties():
    for model_class in ENCODZALL.further_heads.values():
        config = Case(ENCODZALL, "learned_dropout").config(num_labels=3)
        model = model_class(config).train()
        batch = Case(ENCODZALL, "learned_dropout").prompt()
        of_texts = "Sequence" in model_class.__name__
        labels = torch.tensor([0, 2]) if of_texts else torch.ones_like(batch["input_ids"])
        output = model(**batch, labels=labels)
        assert not [name for name in output if name.startswith("mask_")]
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("architecture", "rows"), [(ENCODZALL, Texts), (ABSTRACTINATOR, Rows)], ids=lambda row: "")
def test_trainers_know_schedules_and_measure_no_masks(tmp_path, architecture, rows):
    scheduled = {"mask_l1_loss_weight": 0.3, "mask_l1_loss_weight_min": 0.1, "mask_l1_loss_rate": 0.05}
    case = Case(architecture, "learned_dropout")

    def trainer(folder: str, steps: int):
        model = case.model(**architecture.training_fields, **scheduled)
        return make_trainer(
            tmp_path / folder, model, rows(8), rows(4), max_steps=steps, **architecture.training_arguments
        )

    trainer("run", 5).train()
    logs = metrics_of(tmp_path / "run")
    weights = [entry["mask_l1_loss_weight"] for entry in logs if "mask_l1_loss_weight" in entry]
    assert weights == pytest.approx([min(math.exp(0.05 * step) - 0.9, 0.3) for step in range(5)])
    assert all("mask_l1_loss" in entry for entry in logs if "mask_l1_loss_weight" in entry)
    assert not [name for entry in logs for name in entry if name.startswith("mask_density")]
    with pytest.raises(RecipeError, match=r"mask_l1_loss_rate 0.05 .* run has 4"):
        trainer("short", 4).train()
