"""Training of the Abstractinator: recipes, stages, codebooks over resuming and processes, what an evaluation says."""

import json
import math
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from abstractinator_processes import FOLLOWED, RUNS, make_model, take_steps
from architectures import LEVEL, token_ids
from conftest import REPOSITORY
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_abstractinator import BYTES, VARIANTS, build
from test_training_processes import launch
from torch.utils.flop_counter import FlopCounterMode
from training_setup import LENGTH, Rows, make_trainer, metrics_of
from transformers import Trainer, TrainingArguments

from latentlm import AbstractinatorConfig, AbstractinatorForCausalLM
from latentlm.cli.inspect import main as inspect_main
from latentlm.hub.card import write_card
from latentlm.hub.files import published_files
from latentlm.runs import RecipeError
from latentlm.train import main
from latentlm.training import AbstractinatorTrainingArguments
from latentlm.training.abstractinator import check_frozen

TESTS = Path(__file__).parent
TINY = REPOSITORY / "hub_configs" / "abstractinator-tiny"
ORIGINAL = REPOSITORY / "hub_configs" / "abstractinator-original"
EXPERIMENTS = (
    "regular_flex",
    "regular_sdpa",
    "mla_flex",
    "mla_sdpa",
    "regular_flex_512",
    "regular_flex_entropy_frozen",
)
SHORT = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "max_validation_rows": 2,
    "sample_new_tokens": 4,
    "warmup_steps": 0,
}
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "num_top_layers": 1, "context_length": 64}


def run(recipe: Path, folder: Path, **fields) -> Path:
    arguments = [f"--{name}={value}" for name, value in (SHORT | fields).items()]
    main([str(recipe), f"--output_dir={folder}", *arguments])
    return folder


def trainer_of(folder: Path, variant: str = "two_levels", model=None, **arguments):
    torch.manual_seed(3)
    model = build(variant, **BYTES) if model is None else model
    return make_trainer(folder, model, train=Rows(16), **arguments)


def buffers(folder: Path) -> dict[str, torch.Tensor]:
    saved = load_file(folder / "model.safetensors")
    return {name: value for name, value in saved.items() if "quantizer" in name or "delta" in name}


def test_a_run_says_what_its_codes_are_worth(tmp_path, capsys):
    run(TINY / "recipe.yaml", tmp_path / "run")
    last = [entry for entry in metrics_of(tmp_path / "run") if "eval_loss" in entry][-1]
    assert {
        "eval_level_1_length",
        "eval_level_1_perplexity",
        "eval_level_1_codes_used",
        "eval_bytes_per_top_segment",
        "eval_reconstruction_own",
        "eval_reconstruction_zeroed",
        "eval_reconstruction_shuffled",
        "eval_two_part_bits_per_byte",
        "eval_bits_per_byte",
    } <= last.keys()
    assert 0 < last["eval_level_1_codes_used"] <= 1 <= last["eval_level_1_perplexity"] <= 256
    assert last["eval_two_part_bits_per_byte"] > last["eval_reconstruction_own"] > 0
    picture = tmp_path / "segments.html"
    inspect_main([str(tmp_path / "run"), "Some <text>.\n日本語", "--out", str(picture)])
    assert "&lt;text" in picture.read_text(encoding="utf-8").replace("</span><wbr>", "")
    inspect_main([str(tmp_path / "run"), "Some text", "--out", str(tmp_path / "segments.png")])
    assert (tmp_path / "segments.png").stat().st_size > 1000
    capsys.readouterr()
    inspect_main([str(tmp_path / "run"), "ab " * 200, "--codes", "3", "--out", str(picture)])
    printed = capsys.readouterr().out.split("the most used of them:\n")[1].splitlines()
    assert 1 <= len(printed) <= 3 and all(" segments): " in line for line in printed)
    for arguments, message in (
        (["", "--out", "x.png"], "empty"),
        (["text", "--out", "x.gif"], r"\.png or \.html"),
        (["text", "--bytes", "0"], "--bytes is 0, but must be at least 1"),
        (["text", "--codes", "-3"], "--codes is -3, but must be at least 0"),
        ([str(tmp_path)], "is a folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            inspect_main([str(tmp_path / "run"), *arguments])


def test_the_card_shows_where_a_text_is_cut(tmp_path):
    folder = run(TINY / "recipe.yaml", tmp_path / "run", **SMALL)
    for place in (folder, folder / "checkpoint-2"):
        write_card(place, "org/name")
        assert "(segments.png)" in (place / "README.md").read_text(encoding="utf-8")
        assert "segments.png" in published_files(place)
    (folder / "segments.png").unlink()
    write_card(folder, "org/name")
    assert "segments.png" not in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("changes", "is_drawn"), [({}, True), ({"bos_token_id": None}, False)])
def test_the_picture_of_segments_fits_the_context(tmp_path, changes, is_drawn):
    model = build("default", **(BYTES | {"max_position_embeddings": LENGTH} | changes))
    trainer_of(tmp_path, model=model, evaluation=Rows(1)).write_samples()
    assert (tmp_path / "segments.png").exists() == is_drawn


def test_three_stages(tmp_path):
    """Entropy model; compressor and expander over it; the top model over a frozen base."""
    entropy = run(TINY / "recipe-entropy.yaml", tmp_path / "entropy")
    base = run(TINY / "recipe-base.yaml", tmp_path / "base", load_entropy_from=entropy, fixed_code_steps=0)
    top = run(TINY / "recipe-top.yaml", tmp_path / "top", load_base_from=base)
    first, second, third = (load_file(folder / "model.safetensors") for folder in (entropy, base, top))
    for name, value in first.items():  # of two steps each, in the first of which no code was trained
        stays = ".entropy_model." in name or name.endswith((".seen", ".updates"))
        assert torch.equal(second[name], value) == stays, name
    assert all(torch.equal(third[name], value) for name, value in second.items() if ".levels." in name)
    assert any(".top." in name for name in third) and not any(".top." in name for name in second)


def test_a_base_that_does_not_fit_says_what_is_missing(tmp_path):
    build("default", **BYTES).save_pretrained(tmp_path / "one")
    build("two_levels", **BYTES).save_pretrained(tmp_path / "two")
    with pytest.raises(
        RecipeError, match=r"load_base_from .*missing: model\.levels\.1\.begin\.weight, model\.levels\.1\."
    ):
        trainer_of(tmp_path, "two_levels", load_base_from=str(tmp_path / "one"))
    with pytest.raises(RecipeError, match=r"unexpected: model\.levels\.1\.begin\.weight"):
        trainer_of(tmp_path, "default", load_base_from=str(tmp_path / "two"))
    with pytest.raises(RecipeError, match=r"load_entropy_from .*no model\.safetensors"):
        trainer_of(tmp_path, load_entropy_from=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("fields", "source", "is_enough"),
    [
        ({"freeze_base": True}, "load_entropy_from", False),
        ({"freeze_base": True}, "load_base_from", True),
        ({"num_frozen_levels": 1}, "load_entropy_from", False),
        ({"num_frozen_levels": 1}, "load_base_from", True),
        ({"num_frozen_levels": 1, "freeze_entropy": True}, "load_base_from", False),
        ({"freeze_entropy": True}, "load_entropy_from", True),
        ({"freeze_entropy": True}, "load_base_from", True),
    ],
)
def test_what_a_new_model_freezes_comes_from_another(fields, source, is_enough):
    config = AbstractinatorConfig(levels=[LEVEL, LEVEL], **fields)
    new, loaded = (SimpleNamespace(config=config, name_or_path=path) for path in ("", "folder"))
    nothing = {"load_base_from": None, "load_entropy_from": None}
    wrong = pytest.raises(RecipeError, match=rf"model\.({'|'.join(fields)}) is (True|1), but the model is new: ")
    with wrong:
        check_frozen(new, SimpleNamespace(**nothing))
    with nullcontext() if is_enough else wrong:
        check_frozen(new, SimpleNamespace(**nothing | {source: "folder"}))
    check_frozen(loaded, SimpleNamespace(**nothing))


def test_a_trainer_of_a_new_model_checks_what_it_freezes(tmp_path):
    with pytest.raises(RecipeError, match=r"freeze_base is True, .* training\.load_base_from"):
        trainer_of(tmp_path, model=build(freeze_base=True, **BYTES))
    build(**BYTES).save_pretrained(tmp_path)
    trainer_of(tmp_path, model=AbstractinatorForCausalLM.from_pretrained(tmp_path, freeze_base=True))


def test_a_level_begins_above_one_that_is_finished(tmp_path):
    one = build("default", **BYTES)
    for value in one.state_dict().values():
        value.copy_(value * 1.5 if value.is_floating_point() else value + 1)
    one.save_pretrained(tmp_path / "one")
    model = build("two_levels", num_frozen_levels=1, **BYTES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trainer_of(tmp_path, model=model, load_base_from=str(tmp_path / "one"), fixed_code_steps=0)
    trainer.train()
    finished = one.state_dict()
    for name, value in model.state_dict().items():
        if ".levels.0." in name:
            assert torch.equal(value, finished[name]) and not torch.equal(value, before[name]), name
        else:
            assert "inv_freq" in name or not torch.equal(value, before[name]), name
    assert model.model.levels[1].quantizer.updates == 4


def test_three_levels_learn_a_toy_text_with_all_codes_in_use(tmp_path):
    """With codes that stay as they were; and evaluate, and generate."""
    words = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(24):
        picked = torch.randint(6, (24,), generator=words)
        text = " ".join(("one", "little", "two", "so", "word", "three")[i] for i in picked)[:96]
        ids = torch.tensor(list(text.ljust(96).encode()))
        rows.append({"input_ids": ids, "labels": ids})
    # An expander that hardly sees the text needs the codes; a delta that follows a length cuts short of the maximum.
    own = {"expander_window": 1, "delta": 0.0, "target_segment_length": 2.5, "codebook_decay": 0.9}
    levels = [LEVEL | own | {"num_codes": codes} for codes in (8, 8, 4)]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_top_layers": 1}
    model = AbstractinatorForCausalLM(AbstractinatorConfig(levels=levels, **sizes))
    # What makes codes is not trained: once it is, the upper levels lose half of their codes on so small a text.
    fields = {"max_steps": 60, "fixed_code_steps": 60, "learning_rate": 5e-3, "per_device_eval_batch_size": 8}
    trainer = make_trainer(tmp_path, model, rows, rows, **fields)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_lm_loss"] < 0.5 * before["eval_lm_loss"]
    assert after["eval_reconstruction_own"] < 0.95 * after["eval_reconstruction_shuffled"]
    for i in (1, 2, 3):
        assert after[f"eval_level_{i}_codes_used"] == 1, i
        assert 1.2 < after[f"eval_level_{i}_length"] < 4.5, i
    assert model.generate(rows[0]["input_ids"][None, :20], max_new_tokens=12, do_sample=False).shape == (1, 32)
    assert len(model.generate_bytes([b"one two "], max_new_bytes=12)[0]) > 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_original_experiments_take_two_steps(name, tmp_path):
    """Small; on sdpa, since flex attention has no backward on CPU."""
    fields = dict(SMALL, bf16="false", attn_implementation="sdpa")
    if name == "regular_flex_512":
        fields |= {"hidden_size": 64}
    if name == "regular_flex_entropy_frozen":
        first = run(ORIGINAL / "recipe-regular_sdpa.yaml", tmp_path / "first", **fields)
        fields["load_entropy_from"] = first
    folder = run(ORIGINAL / f"recipe-{name}.yaml", tmp_path / name, **fields)
    assert metrics_of(folder)[-1]["step"] == 2
    config = json.loads((folder / "config.json").read_text())
    assert config["attention_form"] == ("latent" if name.startswith("mla") else "regular")


def test_resuming_goes_on_with_the_same_codebooks(tmp_path):
    fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    whole = trainer_of(tmp_path / "whole", **fields)
    whole.train()
    whole.save_model()
    again = trainer_of(tmp_path / "again", **fields)
    again.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2")
    again.save_model()
    found, expected = buffers(tmp_path / "again"), buffers(tmp_path / "whole")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert metrics_of(tmp_path / "again")[-1] == metrics_of(tmp_path / "whole")[-1]


@pytest.mark.parametrize(("size", "parts"), [(2, 4), (1, 8)])
def test_micro_batches_move_codebooks_as_one_batch_does(tmp_path, size, parts):
    """From the first codebook on, with what is replaced and by which vectors."""
    for name, fields in (("one", (8, 1)), ("parts", (size, parts))):
        trainer = trainer_of(
            tmp_path / name,
            model=build(levels=FOLLOWED, **BYTES),
            max_steps=2,
            optim="sgd",
            learning_rate=0.0,
            max_grad_norm=0.0,
            per_device_train_batch_size=fields[0],
            gradient_accumulation_steps=fields[1],
        )
        for level in trainer.model.model.levels:
            level.quantizer.reset_after = 0.5
        trainer.train()
        trainer.save_model()
    assert_same_buffers(tmp_path / "one", tmp_path / "parts")


def assert_same_buffers(one: Path, other: Path) -> None:
    found, expected = buffers(other), buffers(one)
    assert found.keys() == expected.keys() and any("delta" in name for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        if "updates" in name:
            assert value == 2


# ---- Whoever writes the loop ----


def codebooks(model) -> list[torch.Tensor]:
    return [level.quantizer.codebook.clone() for level in model.model.levels]


def test_codebooks_follow_any_torch_optimizer():
    model, other = build().train(), build().train()
    others = torch.optim.AdamW(other.parameters())
    optimizers = [torch.optim.AdamW(model.parameters(), fused=True), torch.optim.SGD(model.parameters(), 0.0)]
    for count, optimizer in enumerate(optimizers, 1):
        before = codebooks(model)
        for micro_batch in token_ids(4, 30, seed=count).split(2):
            model(micro_batch, labels=micro_batch).loss.backward()
        others.step()
        assert all(torch.equal(*pair) for pair in zip(codebooks(model), before, strict=True))
        optimizer.step()
        assert not any(torch.equal(*pair) for pair in zip(codebooks(model), before, strict=True))
        for level in model.model.levels:
            assert level.quantizer.updates == count and level.quantizer.gathered is None
    with torch.no_grad():
        model(micro_batch, labels=micro_batch)
    model.generate(micro_batch[:, :5], max_new_tokens=3)
    assert all(level.quantizer.gathered is None for level in model.model.levels)


def test_update_by_hand_is_the_step_of_an_optimizer():
    one, other = build(levels=FOLLOWED).train(), build(levels=FOLLOWED).train()
    optimizer = torch.optim.SGD(one.parameters(), 0.0)
    ids = token_ids(4, 30)
    for _ in range(2):
        one(ids, labels=ids)
        optimizer.step()
        other(ids, labels=ids)
        other.model.update()
    for name, value in one.named_buffers():
        assert torch.equal(value, other.get_buffer(name)), name


def test_codebooks_learn_under_a_plain_trainer(tmp_path):
    model = build(levels=FOLLOWED, **BYTES)
    fields = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "report_to": "none"}
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, save_steps=2, **fields)
    Trainer(model, arguments, train_dataset=Rows(16)).train()
    for level in model.model.levels:
        assert level.quantizer.updates == 3 and level.quantizer.counts.ne(1).any()
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert saved["model.levels.0.quantizer.updates"] == 2


def test_an_adapter_trains_entropy_models_that_the_configuration_freezes():
    model = build(freeze_entropy=True)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    ids = token_ids(2, 20)
    adapted(input_ids=ids, labels=ids).loss.backward()
    factors = [name for name, _ in adapted.named_parameters() if "lora_B" in name and ".entropy_model." in name]
    assert len(factors) > 8 and all(adapted.get_parameter(name).grad.any() for name in factors)


def test_codebooks_stay_under_an_adapter():
    """An adapter is saved without them."""
    model = build(levels=FOLLOWED)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW(adapted.parameters())
    before = {name: value.clone() for name, value in model.named_buffers()}
    ids = token_ids(2, 20)
    adapted(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model.model.update()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_an_adapter_trains_under_the_trainer(tmp_path):
    model = get_peft_model(build(**BYTES), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trainer_of(tmp_path, model=model, evaluation=Rows(2), max_steps=2, fixed_code_steps=1)
    trainer.train()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("lora_" in name for name in moved)
    assert any(".entropy_model." in name for name in moved) and any(".pooling." in name for name in moved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_loaded_and_trained_in_float32(tmp_path, dtype):
    model = build(levels=FOLLOWED).train()
    ids = token_ids(4, 30)
    for _ in range(2):
        model(ids, labels=ids)
        model.model.update()
    model.save_pretrained(tmp_path / "one")
    loaded = type(model).from_pretrained(tmp_path / "one", dtype=dtype).train()
    assert loaded.dtype == dtype
    for name, value in model.state_dict().items():
        if "quantizer" in name or "delta" in name:
            found = loaded.state_dict()[name]
            is_weight = name.endswith(".weight")
            assert found.dtype == (dtype if is_weight else value.dtype), name
            assert is_weight or torch.equal(found, value), name
    loaded(ids, labels=ids).loss.backward()
    loaded.model.update()
    loaded.save_pretrained(tmp_path / "two")
    again = type(model).from_pretrained(tmp_path / "two")
    assert again.dtype == dtype
    for name, value in loaded.state_dict().items():
        assert torch.equal(again.state_dict()[name], value) and again.state_dict()[name].dtype == value.dtype


# ---- Losses and stages ----


def test_the_next_byte_loss_rises_over_a_tenth_of_the_run(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=40)
    scales = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: scales.append(float(kwargs["lm_loss_scale"])), with_kwargs=True
    )
    trainer.train()
    assert scales[:6] == pytest.approx([0.02, 0.265, 0.51, 0.755, 1.0, 1.0])


def test_what_makes_codes_is_trained_after_the_first_steps(tmp_path):
    for steps in (2, 3):
        trainer = trainer_of(tmp_path / str(steps), "default", max_steps=steps, fixed_code_steps=2, weight_decay=0.0)
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        trainer.train()
        moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
        codes = {name for name in before if ".compressor" in name or ".pooling." in name or ".quantizer." in name}
        assert (codes <= moved) if steps == 3 else not (codes & moved)
        assert before.keys() - codes <= moved
    with pytest.raises(ValueError, match="fixed_code_steps is -1"):
        AbstractinatorTrainingArguments(output_dir="unused", fixed_code_steps=-1)


def test_what_makes_codes_has_gradients_of_zero_in_the_first_steps():
    """Not none, on which DDP would wait; they are gone before the optimizer's step."""
    for variant in ("two_levels", "latent", "continuous"):
        model = build(variant).train()
        ids = token_ids(2, 30)
        model(ids, labels=ids, train_codes=False).loss.backward()
        codes = set(model.model.code_parameters())
        assert codes
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter not in codes or not parameter.grad.any(), name


def test_first_steps_leave_no_trace_in_the_optimizer(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1, fixed_code_steps=1, weight_decay=0.5)
    before = [value.clone() for value in trainer.model.model.code_parameters()]
    trainer.train()
    assert all(torch.equal(*pair) for pair in zip(trainer.model.model.code_parameters(), before, strict=True))
    assert not any(value in trainer.optimizer.state for value in trainer.model.model.code_parameters())
    trained = trainer.model.model.levels[0].embedding.table.weight
    assert trained in getattr(trainer.optimizer, "optimizer", trainer.optimizer).state


def test_an_evaluation_says_in_bits_what_the_codes_are_worth(tmp_path):
    """The numbers of a whole evaluation, in batches and with rows that only fill them, against a loop over texts."""
    rows = Rows(5, seed=1)
    for row in rows.rows:
        row["labels"] = row["input_ids"].clone()
    trainer = trainer_of(tmp_path, evaluation=rows, per_device_eval_batch_size=4)
    found = trainer.evaluate()
    model, sums, codes = trainer.model.eval(), defaultdict(float), []
    for row in rows.rows:
        ids = row["input_ids"][None]
        sums["bytes"] += row["labels"][1:].ne(-100).sum().item()
        for name, nats in model.reconstruction_nats(ids).items():
            sums[f"reconstruction_{name}"] += nats.item() / math.log(2)
        sums["two_part_bits_per_byte"] += sum(model.code_lengths(ids).values()).item() / math.log(2)
        first, second = model.model.read(ids)[1].levels
        sums["symbols"], sums["segments"] = sums["symbols"] + 24, sums["segments"] + first.segments.count.item()
        sums["top"] += second.segments.count.item()
        codes += first.quantized.codes[first.exists].flatten().tolist()
    for name in ("reconstruction_own", "reconstruction_zeroed", "reconstruction_shuffled", "two_part_bits_per_byte"):
        assert found[f"eval_{name}"] == pytest.approx(sums[name] / sums["bytes"], rel=1e-5), name
    assert found["eval_level_1_length"] == pytest.approx(sums["symbols"] / sums["segments"])
    assert found["eval_bytes_per_top_segment"] == pytest.approx(sums["bytes"] / sums["top"])
    shares = torch.tensor(codes).bincount(minlength=16) / len(codes)
    assert found["eval_level_1_codes_used"] == pytest.approx((shares > 0).float().mean().item())
    assert found["eval_level_1_perplexity"] == pytest.approx(torch.special.entr(shares).sum().exp().item(), rel=1e-5)


def test_what_codes_are_worth_is_of_the_scored_bytes_alone(tmp_path):
    """Half of each row has no labels: no nats, segments and codes of it count."""
    rows = Rows(5, seed=1)
    for row in rows.rows:
        row["labels"] = row["input_ids"].clone()
        row["labels"][: LENGTH // 2] = -100
    trainer = trainer_of(tmp_path, evaluation=rows, per_device_eval_batch_size=4)
    found = trainer.evaluate()
    own = found["eval_level_1_reconstruction_loss"] / math.log(2)
    assert found["eval_reconstruction_own"] == pytest.approx(own, rel=1e-5)
    model, sums = trainer.model.eval(), defaultdict(float)
    for row in rows.rows:
        ids, labels = row["input_ids"][None], row["labels"]
        pyramid = model.model.read(ids, known=True)[1]
        nats = model.code_nats(pyramid)
        counted = {t for t in range(LENGTH) if labels[t] != -100}
        for level, values in zip(pyramid.levels, nats.levels, strict=True):
            sums["nats"] += sum(values[0, t - 1].item() for t in counted)
            counted = {level.segments.index[0, t].item() + 1 for t in counted}  # as symbols of the level above
        sums["nats"] += sum(nats.top[0, t - 1].item() for t in counted)
        sums["bytes"] += LENGTH // 2
        sums["top"] += len(counted)
    expected = sums["nats"] / math.log(2) / sums["bytes"]
    assert found["eval_two_part_bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    assert found["eval_bytes_per_top_segment"] == pytest.approx(sums["bytes"] / sums["top"])


@pytest.mark.parametrize("name", [*VARIANTS, "abstractinator-tiny", "abstractinator-two-level"])
def test_an_evaluation_costs_half_a_forward_more(tmp_path, name):
    """It reads the pyramid once, and the first level's symbols twice more, but for one self-attention: with codes of
    others and with none."""
    if name in VARIANTS:
        model, rows = build(name, **BYTES), Rows(4).rows
    else:
        model = AbstractinatorForCausalLM(AbstractinatorConfig.from_pretrained(REPOSITORY / "hub_configs" / name))
        ids = token_ids(1, min(512, model.config.max_position_embeddings))[0]
        rows = [{"input_ids": ids, "labels": ids}]
    batch = {key: torch.stack([row[key] for row in rows]) for key in ("input_ids", "labels")}
    trainer = trainer_of(tmp_path, model=model, evaluation=rows, per_device_eval_batch_size=len(rows))
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model.eval()(**batch)
    calls = []
    model.model.levels[0].entropy_model.register_forward_hook(lambda *_: calls.append(1))
    with FlopCounterMode(display=False) as evaluation:
        trainer.evaluate()
    assert len(calls) == 1
    assert forward.get_total_flops() < evaluation.get_total_flops() < 1.5 * forward.get_total_flops()


def test_arguments_are_those_of_the_architecture():
    assert AbstractinatorTrainingArguments(output_dir="unused").load_base_from is None


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> Path:
    """Folder of what two processes did in abstractinator_processes.py."""
    folder = tmp_path_factory.mktemp("processes")
    launch(TESTS / "abstractinator_processes.py", folder)
    return folder


@pytest.mark.two_process
@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_and_evaluate_as_one_does(processes, tmp_path, run):
    """DDP, also where nothing trains what makes codes, with checkpointing of both kinds, and FSDP2. Compared are
    the loss of every step, evaluations, and what moves once per step: the first codebooks, what is replaced later,
    deltas."""
    take_steps(tmp_path, make_model(), *RUNS[run], processes=1)
    one, two = metrics_of(tmp_path), metrics_of(processes / run)
    assert len(one) == len(two) and any("eval_level_2_perplexity" in entry for entry in one)
    for expected, found in zip(one, two, strict=True):
        assert expected.keys() == found.keys()
        for name in expected.keys() - {"epoch"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-3), name
    assert_same_buffers(tmp_path, processes / run)
