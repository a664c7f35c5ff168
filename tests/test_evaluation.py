"""lm-eval task files: what they read, that they ask what lm-eval's own tasks ask, and that the scores are right."""
# ruff: noqa: E402  (lm-eval and evaluate are an optional extra: skip before importing from them)

import gzip
import inspect
import json
import math
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

pytest.importorskip("lm_eval", reason="needs the eval extra: pip install 'latentlm[eval]'")
evaluate = pytest.importorskip("evaluate", reason="needs the eval extra: pip install 'latentlm[eval]'")

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from latentlm import (
    ByteTokenizer,
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    FSQConfig,
    FSQForCausalLM,
    FSQTokenizer,
    FSQTokenizerFast,
)
from latentlm.cli.evaluate import DEFAULT_TASKS, main, parse_arguments
from latentlm.data.tokenizers import train_bpe
from latentlm.evaluation import task_folder

STOCK = Path(lm_eval.tasks.__file__).parent
HUB_CONFIGS = Path(__file__).parents[1] / "hub_configs"
METRIC = Path(__file__).parents[1] / "eval" / "metrics" / "bits_per_byte"
# Our task files and the stock ones that they stand for.
STOCK_FILES = {
    "lambada_openai": "lambada/lambada_openai.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
    "copa": "super_glue/copa/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "wikitext": "wikitext/wikitext.yaml",
}
FOUR = {"text": ["a stone", "a boat", "bread", "rain"], "label": ["A", "B", "C", "D"]}
# Invented documents with the fields of the real files; details that the stock prompts treat specially are in them.
DOCUMENTS = {
    "lambada_openai_test.jsonl": [
        {"text": 'The cat sat down.\n\n"Where is my tail?" asked the cat'},
        {"text": "He rowed the old boat over the lake, then he tied up the boat"},
        {"text": "Élan and naïveté: nobody expected the naïveté"},
    ],
    "hellaswag_validation.jsonl.gz": [
        {
            "activity_label": "Baking [step] bread",
            "ctx_a": "A woman stands in a kitchen.",
            "ctx_b": "she",
            "endings": ["bakes [title] bread.", "sings.", "flies  away.", "is rain."],
            "label": "0",
        },
        {
            "activity_label": "Rowing",
            "ctx_a": "A man sits in a boat.",
            "ctx_b": "",
            "endings": ["He rows.", "He bakes.", "He melts.", "He is a boat."],
            "label": "1",
        },
    ],
    "piqa_validation.jsonl": [
        {"goal": "boil water", "sol1": "heat it in a pot", "sol2": "freeze it in a pot", "label": 0},
        {"goal": "dry a shirt", "sol1": "leave it in the rain", "sol2": "hang it in the sun", "label": 1},
    ],
    "arc_easy_test.jsonl": [
        {"id": "0", "question": "What floats?", "choices": FOUR, "answerKey": "B"},
        {"id": "1", "question": "What is wet?", "choices": FOUR, "answerKey": "D"},
    ],
    "arc_challenge_test.jsonl": [{"id": "0", "question": "What sinks?", "choices": FOUR, "answerKey": "A"}],
    "winogrande_validation.jsonl": [
        {"sentence": "The cup fell on the rug and the _ broke.", "option1": "cup", "option2": "rug", "answer": "1"},
        {"sentence": "Ann thanked Eve because _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
    ],
    "copa_validation.jsonl": [
        {"premise": "The lake froze.", "choice1": "It was cold.", "choice2": "It was hot.", "question": "cause"}
        | {"idx": 0, "label": 0},
        {"premise": "It rained.", "choice1": "The sun set.", "choice2": "The rug got wet.", "question": "effect"}
        | {"idx": 1, "label": 1},
    ],
    "openbookqa_test.jsonl": [{"id": "0", "question_stem": "To eat, take", "choices": FOUR, "answerKey": "C"}],
    "wiki.valid.pages.jsonl": [
        {"page": " = Cat = \n \n The cat , a <unk> , sleeps @-@ it 's said \u2013 a lot . \n"},
        {"page": ' = Boat = \n \n A boat is " a vessel " ( 1 @,@ 000 built ) . \n'},
    ],
    "blimp/anaphor_one.jsonl": [
        {"sentence_good": "Ann saw herself.", "sentence_bad": "Ann saw himself.", "UID": "anaphor_one"},
        {"sentence_good": "Bob saw himself.", "sentence_bad": "Bob saw herself.", "UID": "anaphor_one"},
    ],
    "blimp/agreement_two.jsonl": [
        {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps.", "UID": "agreement_two"},
    ],
}


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A folder with DOCUMENTS, named by LATENTLM_EVAL_DATA."""
    folder = tmp_path / "data"
    for name, rows in DOCUMENTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    monkeypatch.setenv("LATENTLM_EVAL_DATA", str(folder))
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, so that the tests need no trained vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="module")
def model(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
        initializer_range=0.3,  # distinct scores
    )
    return LlamaForCausalLM(config).eval()


def evaluate_tasks(model, tokenizer, names: list[str]) -> dict:
    manager = TaskManager(include_path=task_folder(), include_defaults=False, metadata={"pretrained": "RUN"})
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu")
    return simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=False)["results"]


def log_likelihood(model, tokenizer, context: str, continuation: str) -> tuple[float, bool]:
    """(Sum of log p in nats, whether greedy decoding gives it), one unpadded row through the model."""
    prefix = tokenizer.encode(context) or [tokenizer.eos_token_id]
    target = tokenizer.encode(continuation)
    with torch.no_grad():
        logits = model(torch.tensor([prefix + target])).logits[0, len(prefix) - 1 : -1]
    log_probs = logits.double().log_softmax(-1)
    picked = log_probs[torch.arange(len(target)), target]
    return picked.sum().item(), log_probs.argmax(-1).tolist() == target


def test_every_task_scores_and_numbers_are_direct_ones(data, model, tokenizer):
    names = [*STOCK_FILES, "local_blimp"]
    results = evaluate_tasks(model, tokenizer, names)

    for name in set(names) - {"lambada_openai", "wikitext"}:
        assert 0 <= results[name]["acc,none"] <= 1, name
    for name in ("hellaswag", "piqa", "arc_easy", "arc_challenge", "openbookqa"):
        assert 0 <= results[name]["acc_norm,none"] <= 1, name

    def direct(context, continuation):
        return log_likelihood(model, tokenizer, context, continuation)

    split = [row["text"].rpartition(" ") for row in DOCUMENTS["lambada_openai_test.jsonl"]]
    scores = [direct(context, " " + word) for context, _, word in split]
    expected = math.exp(-sum(score for score, _ in scores) / len(scores))
    assert results["lambada_openai"]["perplexity,none"] == pytest.approx(expected, rel=1e-4)
    assert results["lambada_openai"]["acc,none"] == sum(greedy for _, greedy in scores) / len(scores)

    chosen = []
    for row in DOCUMENTS["piqa_validation.jsonl"]:
        question = f"Question: {row['goal']}\nAnswer:"
        first, second = (direct(question, " " + row[key])[0] for key in ("sol1", "sol2"))
        chosen.append(int(second > first) == row["label"])
    assert results["piqa"]["acc,none"] == sum(chosen) / len(chosen)

    paradigms = []
    for paradigm in ("anaphor_one", "agreement_two"):
        rows = DOCUMENTS[f"blimp/{paradigm}.jsonl"]
        right = [direct("", row["sentence_good"])[0] > direct("", row["sentence_bad"])[0] for row in rows]
        paradigms.append(sum(right) / len(right))
        assert results[f"blimp_{paradigm}"]["acc,none"] == paradigms[-1]
    assert results["local_blimp"]["acc,none"] == sum(paradigms) / 2  # the stock group's mean: paradigms weigh the same


def test_lambada_accuracy_counts_greedy_hits(data, model, tokenizer):
    """A random model never completes a word; one that copies one byte makes accuracy something else than zero."""
    byte = tokenizer.encode("a")[0]
    rows = [{"text": "one word: aaa"}, {"text": "another: aab"}]
    (data / "lambada_openai_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    class SpaceThenA(LlamaForCausalLM):
        def forward(self, input_ids, **kwargs):
            outputs = super().forward(input_ids, **kwargs)
            # After ":" a space, after everything else an "a".
            colon, space = tokenizer.encode(":")[0], tokenizer.encode(" ")[0]
            best = torch.where(input_ids == colon, space, byte)
            outputs.logits = 9.0 * torch.nn.functional.one_hot(best, self.config.vocab_size).float()
            return outputs

    results = evaluate_tasks(SpaceThenA(model.config).eval(), tokenizer, ["lambada_openai"])
    assert results["lambada_openai"]["acc,none"] == 0.5


def test_wikitext_bits_per_byte_is_the_metrics(data, model, tokenizer):
    pages = [row["page"] for row in DOCUMENTS["wiki.valid.pages.jsonl"]]
    detokenize = load_yaml(STOCK / STOCK_FILES["wikitext"])["doc_to_target"]
    nats = [-log_likelihood(model, tokenizer, "", detokenize({"page": page}))[0] for page in pages]
    sizes = [len(page.encode()) for page in pages]  # lm-eval counts the page before detokenization

    metric = evaluate.load(str(METRIC))
    for values in zip(nats, sizes, strict=True):
        metric.add(nats=values[0], bytes=values[1])
    expected = metric.compute()["bits_per_byte"]
    score = evaluate_tasks(model, tokenizer, ["wikitext"])["wikitext"]
    assert score["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
    assert score["byte_perplexity,none"] == pytest.approx(2**expected, rel=1e-4)


def requests(task: ConfigurableTask) -> list[tuple]:
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(limit=20, rank=0, world_size=1)
    return [(instance.request_type, instance.args) for instance in task.instances]


def source(value: object) -> object:
    return inspect.getsource(value) if callable(value) else value


def check_equals_stock(name: str) -> None:
    """Same configuration but for where the documents come from, and the same requests for the same documents."""
    ours, stock = load_yaml(task_folder() / f"{name}.yaml"), load_yaml(STOCK / STOCK_FILES[name])
    task = ConfigurableTask(config=ours)
    kwargs = ours["dataset_kwargs"]
    assert (kwargs["hub_path"], kwargs.get("hub_name")) == (stock["dataset_path"], stock.get("dataset_name"))
    for key in (ours.keys() | stock.keys()) - {"custom_dataset", "dataset_kwargs", "tag"}:
        assert source(ours.get(key)) == source(stock.get(key)), key

    dataset = task.dataset
    stock_task = ConfigurableTask(config={**stock, "custom_dataset": lambda **_: dataset})
    expected = requests(stock_task)
    assert len(expected) >= min(20, len(stock_task.eval_docs))
    assert requests(task) == expected


@pytest.mark.parametrize("name", STOCK_FILES)
def test_prompts_and_metrics_are_stock(name, data):
    check_equals_stock(name)


def test_shared_data_loads(shared_data, monkeypatch):
    monkeypatch.setenv("LATENTLM_EVAL_DATA", str(shared_data / "lm_eval"))
    rows = {"lambada_openai": 5153, "arc_easy": 2376, "copa": 100, "wikitext": 60}
    for name, count in rows.items():
        assert len(ConfigurableTask(config=load_yaml(task_folder() / f"{name}.yaml")).eval_docs) == count
        check_equals_stock(name)
    group = load_yaml(task_folder() / "local_blimp.yaml")["class"]()
    files = sorted((shared_data / "lm_eval" / "blimp").glob("*.jsonl"))
    assert [task.task_name for task in group] == [f"blimp_{path.stem}" for path in files]


def test_blimp_members_are_the_files_that_are_there(data, model, tokenizer):
    (data / "blimp" / "anaphor_one.jsonl").unlink()
    results = evaluate_tasks(model, tokenizer, ["local_blimp"])
    assert set(results) == {"local_blimp", "blimp_agreement_two"}
    assert results["local_blimp"]["acc,none"] == results["blimp_agreement_two"]["acc,none"]

    (data / "blimp" / "agreement_two.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no blimp/\*\.jsonl"):
        load_yaml(task_folder() / "local_blimp.yaml")["class"]()


def test_without_the_variable_the_hub_datasets_are_loaded(data, monkeypatch):
    calls = []

    def load_dataset(path, name=None):
        calls.append((path, name))
        rows = [json.loads(line) for line in (data / "blimp" / "anaphor_one.jsonl").read_text().splitlines()]
        return {"train": Dataset.from_list(rows)}

    configs = {name: load_yaml(task_folder() / f"{name}.yaml") for name in (*STOCK_FILES, "local_blimp")}
    module = configs["lambada_openai"]["custom_dataset"].__globals__
    Dataset = module["Dataset"]
    monkeypatch.delenv("LATENTLM_EVAL_DATA")
    monkeypatch.setitem(module, "load_dataset", load_dataset)

    for name, file in STOCK_FILES.items():
        configs[name]["custom_dataset"](**configs[name]["dataset_kwargs"])
        stock = load_yaml(STOCK / file)
        assert calls.pop() == (stock["dataset_path"], stock.get("dataset_name")), name
    group = configs["local_blimp"]["class"]()
    assert group.child_names == load_yaml(STOCK / "blimp" / "_blimp.yaml")["task"]
    assert calls == [("nyu-mll/blimp", name.removeprefix("blimp_")) for name in group.child_names]


def test_wikitext_pages_are_found_beside_the_folder(data):
    config = load_yaml(task_folder() / "wikitext.yaml")
    sibling = data.parent / "wikitext2"
    sibling.mkdir()
    os.rename(data / "wiki.valid.pages.jsonl", sibling / "wiki.valid.pages.jsonl")
    assert len(config["custom_dataset"](**config["dataset_kwargs"])["test"]) == 2
    (data / "wiki.test.pages.jsonl").write_text('{"page": "preferred"}\n')
    assert config["custom_dataset"](**config["dataset_kwargs"])["test"]["page"] == ["preferred"]


def test_few_shot_draws_from_a_train_file(data):
    (data / "piqa_train.jsonl").write_bytes((data / "piqa_validation.jsonl").read_bytes())
    task = ConfigurableTask(config=load_yaml(task_folder() / "piqa.yaml"))
    prompt = task.fewshot_context(task.eval_docs[0], num_fewshot=1)
    assert prompt.count("Question:") == 2
    assert prompt.endswith("Question: boil water\nAnswer:")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"holds none of arc_easy_test\.jsonl .* unset LATENTLM_EVAL_DATA"),
        (b"", r"arc_easy_test\.jsonl is empty"),
        (b'{"question": "caf\xe9"}\n', r"arc_easy_test\.jsonl, line 1: expected a JSON object in UTF-8"),
        (b'{"id": "0"}\n{"id": \n', r"arc_easy_test\.jsonl, line 2: expected a JSON object in UTF-8"),
        (b"[1]\n", r"arc_easy_test\.jsonl, line 1: expected a JSON object, got list"),
    ],
)
def test_bad_files_are_named(data, content, message):
    path = data / "arc_easy_test.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        ConfigurableTask(config=load_yaml(task_folder() / "arc_easy.yaml"))


def test_variable_must_name_a_folder(data, monkeypatch):
    monkeypatch.setenv("LATENTLM_EVAL_DATA", str(data / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"LATENTLM_EVAL_DATA=.* is not a folder"):
        ConfigurableTask(config=load_yaml(task_folder() / "piqa.yaml"))


def test_command_runs_the_default_tasks_on_local_files(data, model, tokenizer, tmp_path, monkeypatch, capsys):
    """The whole command, lm-eval's own task folder included: our files must win over the stock ones."""
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["pytest"])  # restored afterwards
    flags = f"--model hf --model_args pretrained={tmp_path / 'run'} --device cpu --limit 2"
    main(["run", *flags.split(), "--output_path", str(tmp_path / "scores")])
    (path,) = (tmp_path / "scores").rglob("results_*.json")
    report = json.loads(path.read_text())
    assert set(report["results"]) == set(DEFAULT_TASKS)
    for name in DEFAULT_TASKS:
        assert report["configs"][name]["metadata"]["config_source"] == str(task_folder() / f"{name}.yaml")
    assert "lambada_openai" in capsys.readouterr().out


def test_command_line_leaves_the_users_choices_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest"])
    ours = str(task_folder())
    arguments = parse_arguments(["run", "--tasks", "piqa,copa", "--include_path", "mine", "--batch_size", "4"])
    assert (arguments.tasks, arguments.include_path) == (["piqa", "copa"], [ours, "mine"])
    assert arguments.batch_size == "4"
    assert parse_arguments(["--model", "hf"]).tasks == list(DEFAULT_TASKS)  # lm-eval inserts "run"
    for flags in ([], ["--model", "hf"], ["--model", "huggingface"]):
        assert parse_arguments(["run", "--tasks", "piqa", *flags]).model == "hf-one-begin"
    assert parse_arguments(["run", "--model", "encodzall"]).model == "encodzall"
    assert parse_arguments(["ls", "tasks"]).include_path == [ours]

    config = tmp_path / "config.yaml"
    config.write_text("tasks: [copa]\ninclude_path: theirs\n")
    arguments = parse_arguments(["run", "--config", str(config)])
    assert (arguments.tasks, arguments.include_path) == (None, [ours, "theirs"])  # lm-eval reads the tasks there
    assert arguments.model == "hf-one-begin"
    config.write_text("model: encodzall\n")
    assert parse_arguments(["run", "--config", str(config)]).model is None  # and the model
    assert parse_arguments(["run", "--config", str(config), "--model", "hf"]).model == "hf-one-begin"
    with pytest.raises(SystemExit, match=r"Config file not found"):
        main(["run", "--config", str(tmp_path / "absent.yaml")])


def test_bits_per_byte_is_exact():
    metric = evaluate.load(str(METRIC))
    assert metric.compute(nats=[math.log(256), 0.0], bytes=[1, 3]) == {"bits_per_byte": 2.0}
    # A long run of small terms beside a large one, where a plain sum loses digits.
    nats, sizes = [1e8] + [0.1] * 1000, [10**6] + [1] * 1000
    slow = math.fsum(nats) / math.log(2) / (10**6 + 1000)
    assert metric.compute(nats=nats, bytes=sizes)["bits_per_byte"] == pytest.approx(slow, rel=1e-15)


@pytest.mark.parametrize(
    ("nats", "sizes", "message"),
    [([-1.0], [1], "pass -log_likelihood"), ([math.nan], [1], "finite"), ([1.0], [0], "sum above 0")],
)
def test_bits_per_byte_refuses(nats, sizes, message):
    with pytest.raises(ValueError, match=message):
        evaluate.load(str(METRIC)).compute(nats=nats, bytes=sizes)


# --- whole texts begin once -------------------------------------------------------------------------------------------

TEXTS = ("", "a", "The quick brown fox jumps over the dog.", "Zoë 日本語\n\n", "long " * 60)
CONTEXT = 48


def causal_model(kind: str) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """A small model with random weights, and a tokenizer that puts `<bos>` before a text."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": CONTEXT}
    torch.manual_seed(0)
    if kind.startswith("fsq"):
        tokenizer_class = FSQTokenizerFast if kind == "fsq" else FSQTokenizer
        tokenizer = tokenizer_class.from_pretrained(HUB_CONFIGS / "fsq-tokenizer-tiny")
        model_class, config_class = FSQForCausalLM, FSQConfig
        sizes["autoencoder"] = tokenizer.autoencoder_config
    else:
        tokenizer = ByteTokenizer() if kind == "bytes" else train_bpe(TEXTS, 300)
        model_class, config_class = DecoderOnlyForCausalLM, DecoderOnlyConfig
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    model = model_class(config_class(vocab_size=len(tokenizer), initializer_range=0.5, **sizes, **special)).eval()
    if kind.startswith("fsq"):
        model.load_tokenizer(tokenizer)
    return model, tokenizer


def score_of_text(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """log P(text | begin), in stretches of the model's context, the last of which looks back as far as it can."""
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    ids, total = [tokenizer.bos_token_id, *tokens], 0.0
    for start in range(0, len(tokens), CONTEXT):
        end = min(start + CONTEXT, len(tokens))
        with torch.no_grad():
            scores = model(torch.tensor([ids[max(end - CONTEXT, 0) : end]])).logits[0].double().log_softmax(-1)
        total += sum(scores[i - end, token].item() for i, token in enumerate(tokens[start:end], start))
    return total


def requests_of(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=given, idx=0) for given in arguments]


@pytest.mark.parametrize("kind", ["bytes", "bpe", "fsq", "fsq_slow"])
def test_scores_are_sums_of_log_probabilities(kind, data, tmp_path):
    model, tokenizer = causal_model(kind)
    lm = get_model("hf-one-begin")(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")

    rolling = requests_of("loglikelihood_rolling", [(text,) for text in TEXTS])
    expected = [score_of_text(model, tokenizer, text) for text in TEXTS]
    assert lm.loglikelihood_rolling(rolling) == pytest.approx(expected, rel=1e-5)

    pairs = [("The quick", " fox"), ("", " fox"), ("Zoë 日本語", " dog")]
    found = [score for score, _ in lm.loglikelihood(requests_of("loglikelihood", pairs))]
    direct = [score_of_text(model, tokenizer, a + b) - score_of_text(model, tokenizer, a) for a, b in pairs]
    assert found == pytest.approx(direct, rel=1e-4)

    manager = TaskManager(include_path=task_folder(), include_defaults=False, metadata={"pretrained": "RUN"})
    results = simple_evaluate(lm, tasks=["wikitext"], task_manager=manager, bootstrap_iters=0, log_samples=False)
    pages = [row["page"] for row in DOCUMENTS["wiki.valid.pages.jsonl"]]
    detokenize = load_yaml(STOCK / STOCK_FILES["wikitext"])["doc_to_target"]
    nats = -sum(score_of_text(model, tokenizer, detokenize({"page": page})) for page in pages)
    bits = nats / math.log(2) / sum(len(page.encode()) for page in pages)
    assert results["results"]["wikitext"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)

    # lm-eval's own model gives whole texts the same scores with add_bos_token=False, which is not right for pairs.
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain = HFLM(pretrained=str(tmp_path), trust_remote_code=True, add_bos_token=False, batch_size=2, device="cpu")
    assert plain.loglikelihood_rolling(rolling) == pytest.approx(expected, rel=1e-5)
    # If this fails, lm-eval counts the begin token no longer as text, and `hf-one-begin` can go.
    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
    assert plain.loglikelihood_rolling(rolling) != pytest.approx(expected, rel=1e-3)


# --- the FSQ tokenizer and its language model -------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"head": "factorised"}, {"joint": True}], ids=str)
def test_a_language_model_on_codes_is_scored_as_any_other(data, fields):
    """Bits per byte and the words of LAMBADA, through `--model hf`, against log-likelihoods text by text."""
    fsq = FSQTokenizerFast.from_pretrained(HUB_CONFIGS / "fsq-tokenizer-tiny")
    torch.manual_seed(0)
    config = FSQConfig(
        vocab_size=len(fsq),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        autoencoder=fsq.autoencoder_config,
        initializer_range=0.3,
        pad_token_id=fsq.pad_token_id,
        bos_token_id=fsq.bos_token_id,
        eos_token_id=fsq.eos_token_id,
        **fields,
    )
    model = FSQForCausalLM(config).eval()
    model.load_tokenizer(fsq)

    def nats(ids: list[int], start: int) -> float:
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return -sum(scores[t - 1, ids[t]].item() for t in range(start, len(ids)))

    results = evaluate_tasks(model, fsq, ["wikitext", "lambada_openai"])
    words = [row["text"].rsplit(" ", 1) for row in DOCUMENTS["lambada_openai_test.jsonl"]]
    losses = []
    for context, word in words:
        first = fsq(context).input_ids
        losses.append(nats(first + fsq(" " + word, add_special_tokens=False).input_ids, len(first)))
    expected = math.exp(sum(losses) / len(losses))
    assert results["lambada_openai"]["perplexity,none"] == pytest.approx(expected, rel=1e-3)
    assert 0 < results["wikitext"]["bits_per_byte,none"] < 20
