"""`latentlm tokenizer prune`: the most used pieces stay, and nothing is lost. What `rebuild` and `analyse` keep or
refuse of the same tokenizer."""

from collections import Counter

import pytest
from safetensors.torch import save
from test_fsq import small
from test_fsq_tokenizer import SIZE, TEXTS, assert_survives, vocabulary

from latentlm import FSQConfig, FSQForCausalLM, FSQTokenizer, FSQTokenizerFast
from latentlm.cli.tokenizer import main
from latentlm.data.codes import code_fields
from latentlm.evaluation.tokenizers import analyse_tokenizer
from latentlm.models.configuration_fsq import own_fields
from latentlm.training.fsq_tokenizer import load_without_added_tokens

KEEP = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer with everything that must survive: network, costs, framing, own names, a chat template."""
    folder = tmp_path_factory.mktemp("prune")
    network = small(levels=[8, 8, 8, 5], max_chunk_bytes=16)
    costs = [1 + index % 4 for index in range(SIZE - 4)]
    table = vocabulary(autoencoder=own_fields(network.config), weights=save(network.state_dict()), costs=costs)
    tokenizer = FSQTokenizerFast.from_vocabulary(table, add_eos_token=True, eos_token="<end>")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder / "whole")
    (folder / "text.txt").write_text("The documentation of the pieces inside Python, and others.\n" * 3)
    return folder


def test_the_most_used_pieces_stay(folder, capsys):
    out = folder / "pruned"
    main(["prune", str(folder / "whole"), str(folder / "text.txt"), str(out), "--keep", str(KEEP)])
    data = (folder / "text.txt").read_bytes()
    old, slow, fast = (
        FSQTokenizer.from_pretrained(folder / "whole"),
        FSQTokenizer.from_pretrained(out),
        FSQTokenizerFast.from_pretrained(out),
    )
    assert len(slow) == len(fast) == KEEP and fast.vocabulary.version == 2
    pieces = slow.vocabulary.pieces
    uses = Counter(old.decode_bytes([index]) for index in old.encode_bytes(data) if index >= 256)
    assert uses.keys() <= set(pieces)  # all that is used, as there is room; then those before others
    unused = [piece for piece in old.vocabulary.pieces if piece not in uses]
    assert set(pieces) == uses.keys() | set(unused[: KEEP - 260 - len(uses)])
    for index, spelling in enumerate(slow.vocabulary.spellings):
        before = old.vocabulary.spellings.index(spelling)
        assert slow.codes[index] == old.codes[before]
        assert slow.vocabulary.costs[index] == old.vocabulary.costs[before]
        for name in ("moved", "inexact"):
            assert (index in getattr(slow.vocabulary, name)) == (before in getattr(old.vocabulary, name))
    assert slow.encode_bytes(data) != old.encode_bytes(data) and slow.decode_bytes(slow.encode_bytes(data)) == data
    assert fast("").input_ids == [KEEP - 3, KEEP - 2] and fast.eos_token == "<end>"
    assert fast.chat_template == "{{ messages }}"
    for name, tensor in old.autoencoder.state_dict().items():
        assert tensor.equal(fast.autoencoder.state_dict()[name])
    ratio = len(data) / len(old.encode_bytes(data))
    assert f"1,500 ids to 700: {ratio:.3f} to {ratio:.3f} bytes per token" in capsys.readouterr().out


def test_few_or_no_pieces_lose_nothing(folder, capsys):
    for keep in (260, 300):
        main(["prune", str(folder / "whole"), str(folder / "text.txt"), str(folder / "few"), "--keep", str(keep)])
        slow, fast = (kind.from_pretrained(folder / "few") for kind in (FSQTokenizer, FSQTokenizerFast))
        for text in TEXTS:
            assert_survives(slow, fast, text)
    assert len(slow.encode_bytes(b"the")) < 3
    assert "1,500 ids to 260" in capsys.readouterr().out


def message(*arguments) -> str:
    with pytest.raises(SystemExit) as error:
        main(["prune", *map(str, arguments)])
    return str(error.value.code)


def test_impossible_sizes_and_texts(folder, tmp_path):
    whole, text, out = folder / "whole", folder / "text.txt", tmp_path / "out"
    assert "--keep is 259, but must be at least 260" in message(whole, text, out, "--keep", 259)
    assert "--keep is 1501, but" in message(whole, text, out, "--keep", 1501)
    (tmp_path / "empty.txt").touch()
    assert "is empty" in message(whole, tmp_path / "empty.txt", out, "--keep", 300)
    tokenizer = FSQTokenizerFast.from_pretrained(whole)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(tmp_path / "more")
    assert "1 added tokens" in message(tmp_path / "more", text, out, "--keep", 300)
    assert not out.exists()


def test_rebuilding_keeps_the_settings_of_the_tokenizer(folder, tmp_path):
    tokenizer = FSQTokenizerFast.from_pretrained(folder / "whole")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    fields = code_fields(tokenizer) | {"vocab_size": len(tokenizer), "joint": True}
    model = FSQForCausalLM(FSQConfig(**sizes, **fields))
    model.load_tokenizer(tokenizer)
    tokenizer.model_max_length = 77
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "joint")
    main(["rebuild", str(tmp_path / "joint"), str(tmp_path / "rebuilt")])
    for kind in (FSQTokenizer, FSQTokenizerFast):
        rebuilt = kind.from_pretrained(tmp_path / "rebuilt")
        assert rebuilt.vocabulary.version == 2 and rebuilt.vocabulary.pieces == tokenizer.vocabulary.pieces
        assert rebuilt("").input_ids == tokenizer("").input_ids and rebuilt.eos_token == "<end>"
        assert rebuilt.model_max_length == 77 and rebuilt.chat_template == "{{ messages }}"


def test_added_tokens_are_refused(folder, tmp_path):
    tokenizer = FSQTokenizerFast.from_pretrained(folder / "whole")
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="1 added tokens, which are not in its table"):
        analyse_tokenizer(tmp_path, folder / "text.txt", tmp_path / "out")
    with pytest.raises(ValueError, match="1 added tokens, which are not in its table"):
        load_without_added_tokens(tmp_path)
