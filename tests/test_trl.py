"""TRL's trainers, which call the backbone and multiply by the weight of the output layer themselves."""

import copy
import logging

import pytest
import torch
from architectures import ARCHITECTURES, CAUSAL, Case
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from latentlm import ByteTokenizer

CASES = [Case(row, variant) for row in CAUSAL for variant in dict.fromkeys((row.typical, "default"))]
CASES += [Case(row, "factorised") for row in CAUSAL if "factorised" in row.variants]
each_trl_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.architecture.name}-{case.variant}")
RATE = 0.1
OPTIONS = {
    "max_steps": 1,
    "learning_rate": RATE,
    "optim": "sgd",
    "max_grad_norm": 0.0,  # leaves gradients as they are
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}


def make_model(case: Case):
    """In bytes, without random masks."""
    random = getattr(case.config(), "learned_dropout", "none") == "bernoulli"
    return case.model(vocab_size=320, **({"learned_dropout": "sigmoid"} if random else {})).train()


@each_trl_case
def test_sft_takes_the_step_of_the_language_model_loss(case: Case, tmp_path, caplog):
    """Texts of unequal lengths, so with padding. What TRL does not train it says before the first step."""
    model = make_model(case)
    texts = Dataset.from_dict({"text": ["Hello brave world", "this is it", "x", "and one more"]})
    logging.getLogger("transformers").addHandler(caplog.handler)  # it does not propagate
    try:
        trainer = SFTTrainer(
            model,
            SFTConfig(str(tmp_path), per_device_train_batch_size=4, **OPTIONS),
            train_dataset=texts,
            processing_class=ByteTokenizer(),
        )
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    batch = next(iter(trainer.get_train_dataloader()))
    expected = copy.deepcopy(model)
    del expected.forward  # TRL's
    output = expected(**batch)
    further = {name for name in output if name.endswith("_loss")} - {"lm_loss"}
    said = [message for message in caplog.messages if "TRL trains with `lm_loss` alone" in message]
    assert len(said) == bool(further) and all(name in said[0] for name in further)

    output.lm_loss.backward()
    torch.optim.SGD([p for p in expected.parameters() if p.grad is not None], RATE).step()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(output.lm_loss.item(), rel=1e-5)
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["decoder_only", "fsq"])
def test_dpo(name: str, tmp_path):
    """The first loss is log 2, and a step makes the chosen answer likelier than the rejected one."""
    row = next(row for row in ARCHITECTURES if row.name == name)
    model = make_model(Case(row, "factorised" if "factorised" in row.variants else "default"))
    pairs = Dataset.from_dict({"prompt": ["2+2="] * 2, "chosen": ["4", "four"], "rejected": ["5", "no"]})
    trainer = DPOTrainer(
        model,
        ref_model=copy.deepcopy(model),
        args=DPOConfig(str(tmp_path), per_device_train_batch_size=2, **OPTIONS | {"max_steps": 2}),
        train_dataset=pairs,
        processing_class=ByteTokenizer(),
    )
    trainer.train()
    first, second = (entry["loss"] for entry in trainer.state.log_history[:2])
    assert first == pytest.approx(0.6931, abs=1e-4) and second < first


def test_grpo(tmp_path):
    """Rewarded for one byte, the model gives it more probability."""
    model = make_model(Case(CAUSAL[0], "default"))
    prompts = Dataset.from_dict({"prompt": ["a", "b"]})
    tokenizer = ByteTokenizer()

    def even(completion_ids, **kwargs):
        return [float(sum(token % 2 == 0 for token in ids)) for ids in completion_ids]

    def share() -> float:
        with torch.no_grad():
            return model.eval()(torch.tensor([tokenizer("a").input_ids])).logits[0, -1].softmax(-1)[::2].sum().item()

    before = share()
    options = {"num_generations": 4, "max_completion_length": 2, "per_device_train_batch_size": 8}
    trainer = GRPOTrainer(
        model,
        reward_funcs=even,
        args=GRPOConfig(str(tmp_path), **options, **OPTIONS | {"max_steps": 2}),
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    trainer.train()
    assert share() > before
