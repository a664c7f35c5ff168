"""`generate_batch` of transformers: requests of different lengths share each forward and one paged cache."""

import pytest
import torch
from architectures import Case, each_causal_architecture, each_causal_case, token_ids, typical_causal_case
from encodzall_setup import build
from transformers import ContinuousBatchingConfig, GenerationConfig

PROMPTS = [token_ids(1, length, seed=length)[0].tolist() for length in (5, 9, 3)]
# Pages of 4 tokens, and 8 tokens a batch: prompts are cut, and requests end up on pages out of order.
CACHE = {"num_blocks": 24, "max_batch_tokens": 8, "page_size": 4}


def generation(**options) -> GenerationConfig:
    return GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, **options)


def assert_requests_equal_each_alone(case: Case, backend: str) -> None:
    case.skip_if_excepted("continuous_batching")
    model = case.model(backend)
    if model.config.ngram_embedding is not None:
        with pytest.raises(ValueError, match=r"`ngram_embedding` is \[2, 4\].*Use `generate`"):
            model.generate_batch(PROMPTS, generation(max_new_tokens=6))
        return
    outputs = model.generate_batch(
        PROMPTS, generation(max_new_tokens=6), continuous_batching_config=ContinuousBatchingConfig(**CACHE)
    )
    assert [output.error for output in outputs.values()] == [None] * len(PROMPTS)
    for prompt, output in zip(PROMPTS, outputs.values(), strict=True):
        alone = model.generate(torch.tensor([prompt]), generation_config=generation(max_new_tokens=6))
        assert output.generated_tokens == alone[0, len(prompt) :].tolist()


@each_causal_case
def test_a_batch_of_requests_equals_each_alone(case: Case):
    assert_requests_equal_each_alone(case, "sdpa")


@typical_causal_case
def test_a_batch_of_requests_with_eager_attention(case: Case):
    assert_requests_equal_each_alone(case, "eager")


@each_causal_architecture
def test_a_cache_that_does_not_fit_is_a_clear_error(architecture):
    if "continuous_batching" in architecture.exceptions:
        with pytest.raises(ValueError, match="Use `generate`"):
            Case(architecture, architecture.typical).model().generate_batch(PROMPTS)
        return
    model = Case(architecture, "default").model(learned_dropout="bernoulli", num_key_value_heads=1)
    with pytest.raises(ValueError, match=r"`learned_dropout` is 'bernoulli'.*`num_key_value_heads` 1"):
        model.generate_batch(PROMPTS, generation(max_new_tokens=6))
    with pytest.raises(ValueError, match="A context of 33 tokens does not fit: `max_position_embeddings` is 32"):
        model.generate_batch(PROMPTS, generation(max_new_tokens=24))


def test_encodzall_refuses_it():
    with pytest.raises(ValueError, match="Use `generate`"):
        build().generate_batch(PROMPTS)
