"""Every script in examples/ runs, on tiny settings."""

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import commands_of

from latentlm import (
    AbstractinatorConfig,
    AbstractinatorForCausalLM,
    ByteTokenizer,
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    EncodzallConfig,
    EncodzallForMaskedDenoising,
    EncodzallTokenizer,
    FSQTokenizerFast,
)
from latentlm.cli.tokenizer import main as tokenizer_main
from latentlm.evaluation import tokenizers as tokenizer_evaluation

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SHIPPED = EXAMPLES.parent / "hub_configs" / "encodzall-wikitext2"


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a Python example in this process (its imports are paid for) and returns what it printed."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = ByteTokenizer()
    config = DecoderOnlyConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    DecoderOnlyForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encodzall_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encodzall")
    config = EncodzallConfig(hidden_size=16, num_attention_heads=2, intermediate_size=16, max_position_embeddings=128)
    EncodzallForMaskedDenoising(config).save_pretrained(folder)
    EncodzallTokenizer(model_max_length=128).save_pretrained(folder)
    return folder


def test_every_example_is_listed_short_and_tested():
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    here = Path(__file__).read_text(encoding="utf-8")
    scripts = [path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")]
    assert len(scripts) == 15
    for script in scripts:
        assert f"({script.name})" in listed
        assert f'"{script.name}"' in here or script.name == "demo.py"  # tests/test_demo.py
        assert len(script.read_text(encoding="utf-8").splitlines()) < 55


def test_train_from_python(run_example, tmp_path):
    printed = run_example("train_from_python.py", "--output_dir", tmp_path, "--max_steps", 1)
    assert "step 1 evaluation: lm_loss" in printed and "embedding_loss" in printed and "bits_per_byte" in printed
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "modeling_ar_encoder_decoder.py").exists()


def test_own_data(run_example, tmp_path):
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    rows = [{"body": " ".join(words[i % 7 :] + words[: i % 11] * 3) + f" {i}."} for i in range(60)]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tiny = {"max_steps": 2, "warmup_steps": 0, "context_length": 32, "hidden_size": 16, "num_hidden_layers": 1}
    tiny |= {"num_attention_heads": 2, "tokenizer_vocab_size": 280, "sample_prompts": 0, "validation_fraction": 0.2}
    fields = [part for name, value in tiny.items() for part in (f"--{name}", value)]
    run = tmp_path / "run"
    printed = run_example(
        "own_data.py", tmp_path / "posts.jsonl", "--text_column", "body", "--output_dir", run, *fields
    )
    assert "step 0 evaluation: lm_loss" in printed
    assert json.loads((run / "config.json").read_text())["vocab_size"] == 280
    assert (run / "tokenizer.json").exists()
    with pytest.raises(SystemExit, match=r"own_data\.py posts\.jsonl"):
        run_example("own_data.py")  # says how


def test_load_from_hub(run_without_latentlm, model_folder):
    code = (EXAMPLES / "load_from_hub.py").read_text(encoding="utf-8")
    printed = run_without_latentlm(code, model_folder).splitlines()
    assert printed[0].startswith("DecoderOnlyForCausalLM, ")
    assert [line.partition(" bits per byte: ")[2] for line in printed[1:]] == [
        "The function returns a new list.",
        "The list new a returns function.",
    ]


def test_generate(run_example, model_folder):
    printed = run_example("generate.py", model_folder, "A", "A longer one")
    for how in ("greedy", "beams", "sampled"):
        assert printed.count(f"{how}: ") == 2
    assert "greedy: 'A longer one" in printed
    assert "\nstream:\n" in printed


def test_evaluate_with_lm_eval(model_folder, shared_data, forks, tmp_path):
    pytest.importorskip("lm_eval", reason="needs the eval extra: pip install 'latentlm[eval]'")
    command = [EXAMPLES / "evaluate_with_lm_eval.sh", model_folder, "--limit", "1", "--device", "cpu"]
    printed = forks.run_shell(EXAMPLES, *command, "--output_path", tmp_path / "scores")
    assert "|lambada_openai|" in printed
    assert list((tmp_path / "scores").rglob("results_*.json"))


def test_build_fsq_tokenizer(forks, tmp_path, monkeypatch, capsys):
    from pydoc_data.topics import topics

    (tmp_path / "a.txt").write_text("".join(topics.values())[:40_000], encoding="utf-8")
    script = [EXAMPLES / "build_fsq_tokenizer.sh", tmp_path / "out", tmp_path / "a.txt"]
    train, build, (check, _) = commands_of(EXAMPLES.parent, *script, env={"STEPS": "2", "TOKENS": "400"})
    for arguments, variables in (train, build):
        forks.run(EXAMPLES.parent, arguments=arguments, env=variables)
    # Every scalar takes ten seconds.
    scalars = tokenizer_evaluation.every_scalar()[::50]
    monkeypatch.setattr(tokenizer_evaluation, "every_scalar", lambda: scalars)
    assert check[:2] == ["latentlm", "tokenizer"]
    tokenizer_main(check[2:])
    assert "Nothing is lost" in capsys.readouterr().out
    assert len(FSQTokenizerFast.from_pretrained(tmp_path / "out")) == 400


@pytest.fixture(scope="module")
def abstractinator_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("abstractinator")
    fields = {
        "num_entropy_layers": 1,
        "num_compressor_layers": 1,
        "num_expander_layers": 1,
        "num_codes": 8,
        "code_dim": 4,
    }
    config = AbstractinatorConfig(
        hidden_size=16, num_attention_heads=2, num_top_layers=1, levels=[fields], max_position_embeddings=256
    )
    AbstractinatorForCausalLM(config).save_pretrained(folder)
    ByteTokenizer().save_pretrained(folder)
    return folder


def test_compress_text(run_example, abstractinator_folder):
    output = run_example("compress_text.py", abstractinator_folder, "Some text.")
    assert "10 bytes; one by one" in output and "(codes)" in output and "level 1:" in output


def test_generate_from_codes(run_example, abstractinator_folder):
    output = run_example("generate_from_codes.py", abstractinator_folder)
    assert output.count("byte by byte: 'The") == output.count("from codes:   'The") == 2


def test_train_in_stages(forks, tmp_path):
    fields = ["--max_steps", "2", "--max_train_rows", "4", "--max_validation_rows", "2", "--eval_steps", "2"]
    fields += ["--save_steps", "2", "--logging_steps", "1", "--warmup_steps", "0", "--sample_prompts", "0"]
    forks.run_shell(tmp_path, "bash", EXAMPLES / "train_in_stages.sh", tmp_path, *fields)
    assert (tmp_path / "abstractinator-tiny-top" / "model.safetensors").exists()


def test_repair_texts(run_example):
    """With the model that ships, on text of its kind."""
    printed = run_example("repair_texts.py")
    assert printed.count("noisy: ") == printed.count("repaired: ") == 3
    assert "repaired: The government announced that the bridge would be rebuilt next year ." in printed
    given = run_example("repair_texts.py", SHIPPED, "Nothing is wrong here .")
    assert given.splitlines()[1] == "repaired: Nothing is wrong here ."


def test_fill_words(run_example):
    printed = run_example("fill_words.py")
    assert printed.count("filled: ") == 4 and printed.count(" nats)") == 12
    assert "  filled: album (" in printed and "  filled: released (" in printed


def test_embed_texts(run_example, encodzall_folder):
    pytest.importorskip("sentence_transformers")
    assert run_example("embed_texts.py", encodzall_folder).count("nearest: ") == 3
    pairs = re.findall(r"nearest: '(.*)' → '(.*)'", run_example("embed_texts.py"))
    assert [clean[:4] for _, clean in pairs] == ["The ", "An e", "A mo"]


@pytest.mark.parametrize("name", ["classify_texts.py", "tag_words.py"])
def test_fine_tuning(run_example, encodzall_folder, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = run_example(name, encodzall_folder, 2)
    last = printed.strip().splitlines()[-1]
    assert "item.reset()" in last or "guido" in last.lower()
    accuracy, f1 = map(float, re.search(r"accuracy.* ([\d.]+), F1 of \w+ ([\d.]+)", printed).groups())
    assert 0 < accuracy <= 1 and 0 <= f1 <= 1


WITH_A_MODEL = ("classify_texts.py", "compress_text.py", "embed_texts.py", "evaluate_with_lm_eval.sh", "fill_words.py",
                "generate.py", "generate_from_codes.py", "load_from_hub.py", "repair_texts.py",
                "tag_words.py")  # fmt: skip


@pytest.mark.parametrize("name", WITH_A_MODEL)
@pytest.mark.parametrize("arguments", [[], ["runs/mine"]], ids=["default", "given"])
def test_a_run_that_is_not_there_is_no_name_on_the_hub(name, arguments, run_example, tmp_path, monkeypatch):
    if name == "embed_texts.py":
        pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(tmp_path)
    message = "There is no (runs|hub_configs)/.*: name a model, or make this run as examples/README.md says"
    if name.endswith(".py"):
        with pytest.raises(SystemExit, match=message):
            run_example(name, *arguments)
    else:
        done = subprocess.run([str(EXAMPLES / name), *arguments], capture_output=True, text=True)
        assert done.returncode == 1 and re.match(message, done.stderr)


def test_every_example_that_takes_a_run_is_among_them():
    texts = {path.name: path.read_text(encoding="utf-8") for path in EXAMPLES.iterdir() if path.is_file()}
    assert {name for name, text in texts.items() if "org/name or run folder" in text} == set(WITH_A_MODEL)
