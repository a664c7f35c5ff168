"""EncodZall in lm-eval: each word masked in turn, against one word at a time."""

import re

import pytest
import torch

pytest.importorskip("lm_eval", reason="needs the eval extra: pip install 'latentlm[eval]'")

from encodzall_setup import build
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from test_evaluation import data  # noqa: F401  (a fixture)

from latentlm import EncodzallTokenizer
from latentlm.evaluation import task_folder
from latentlm.evaluation.encodzall import EncodzallLM


@pytest.fixture(scope="module")
def masked_lm():
    return EncodzallLM(build(max_position_embeddings=48), EncodzallTokenizer(), batch_size=3)


def score_slowly(lm, text: str, words: list[int]) -> float:
    """Each word by itself: no batch, no padding."""
    pieces = re.findall(r"\s*\S+\s*", text) if text[0].isspace() else re.findall(r"\S+\s*", text)
    total = 0.0
    for word in words:
        bare = pieces[word].strip()
        masked = "".join(piece.replace(bare, "<mask>") if k == word else piece for k, piece in enumerate(pieces))
        ids = lm.tokenizer(masked, return_tensors="pt")
        with torch.no_grad():
            vector = lm.model.model(**ids).last_hidden_state[0, word][None]
            total += lm.model.word_log_probabilities(vector, torch.tensor([[*pieces[word].encode()]])).item()
    return total


def requests_of(*arguments: tuple) -> list[Instance]:
    return [Instance("loglikelihood", {}, each, index) for index, each in enumerate(arguments)]


def test_masked_words_add_up(masked_lm):
    found = masked_lm.loglikelihood(
        requests_of(("", "Ann saw herself."), ("Ann saw", " herself again"), ("Ann saw hers", "elf"), ("one ", ""))
    )
    expected = [
        score_slowly(masked_lm, "Ann saw herself.", [0, 1, 2]),
        score_slowly(masked_lm, "Ann saw herself again", [2, 3]),
        score_slowly(masked_lm, "Ann saw herself", [2]),
        0.0,
    ]
    assert [total for total, _ in found] == pytest.approx(expected, rel=1e-4)
    assert not found[0][1] and found[3][1]


def test_the_masked_words_of_a_text_share_its_bytes(masked_lm):
    """A copy of the text for each of its words would take gigabytes for the requests of a task."""
    words = masked_lm.mask_words("one two three four", 0, 0)
    assert len(words) == 4 and all(word.text is words[0].text for word in words)


def test_a_text_that_is_too_long_is_scored_in_parts(masked_lm):
    text = "some words of a text that is longer than forty-eight bytes"
    [found] = masked_lm.loglikelihood_rolling(requests_of((text,)))
    first, second = "some words of a text that is longer than ", "forty-eight bytes"
    expected = score_slowly(masked_lm, first, list(range(9))) + score_slowly(masked_lm, second, [0, 1])
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_long_context_keeps_its_last_words_and_a_long_continuation_is_cut(masked_lm):
    context, endless = "some words of a text that is longer than forty", "en" + " and more words" * 4
    found = masked_lm.loglikelihood(
        requests_of((context, " eight"), (context, " of these eight bytes"), (context + " hyph", endless))
    )
    first, second = "hyphen and more words and more words and more ", "words and more words"
    expected = [
        score_slowly(masked_lm, "words of a text that is longer than forty eight", [9]),
        score_slowly(masked_lm, "that is longer than forty of these eight bytes", [5, 6, 7, 8]),
        score_slowly(masked_lm, first, list(range(9))) + score_slowly(masked_lm, second, [0, 1, 2, 3]),
    ]
    assert [total for total, _ in found] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("dtype", "found"), [("auto", torch.float16), ("bfloat16", torch.bfloat16)])
def test_weights_have_the_dtype_that_is_asked_for(dtype, found, tmp_path):
    build().half().save_pretrained(tmp_path)
    EncodzallTokenizer().save_pretrained(tmp_path)
    assert EncodzallLM(str(tmp_path), dtype=dtype).model.dtype == found


def test_blimp_runs_by_pseudo_log_likelihood(data, masked_lm):  # noqa: F811  (a fixture)
    manager = TaskManager(include_path=task_folder(), include_defaults=False, metadata={"pretrained": "RUN"})
    scored = simple_evaluate(masked_lm, tasks=["local_blimp"], task_manager=manager, bootstrap_iters=0)
    results = scored["results"]
    good, bad = (score_slowly(masked_lm, f"Cats {verb}.", [0, 1]) for verb in ("sleep", "sleeps"))
    assert results["blimp_agreement_two"]["acc,none"] == float(good > bad)


def test_without_a_gpu_the_default_device_of_lm_eval_is_the_cpu():
    lm = EncodzallLM.create_from_arg_obj({"pretrained": build()}, {"device": "cuda:0", "batch_size": 2})
    assert lm.model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_model_without_word_decoder_is_refused():
    with pytest.raises(ValueError, match="has no word decoder"):
        EncodzallLM(build("plain"), EncodzallTokenizer())
