"""Pushing a run folder or checkpoint to the Hub, in one commit, with its card."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from latentlm.architectures import find_head
from latentlm.runs.redaction import redact

from .card import write_card
from .files import PublishError, check_complete, published_files, read_json

# Weights under other names would be found first by whoever loads the repository.
STALE = ("model*.safetensors", SAFE_WEIGHTS_INDEX_NAME, "pytorch_model*", "training_args.bin")


def publish(
    folder: Path,
    repo_id: str,
    message: str = "Publish with latentlm",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    **card_fields: Any,
) -> CommitInfo:
    """Push a run folder or checkpoint, in one commit, and write its card; one without code, as in `hub_configs`, with
    that of its model.

    Args:
        repo_id: `organisation/name`, or `name` for the user's own; created if it is not there.
        private: visibility of a new repository; `None` for the account's default.
        token: a write token instead of the one that is logged in.
        revision: branch to commit to instead of the main one.
        card_fields: as for [`write_card`].

    Raises:
        PublishError: if the folder is not a complete run, or the Hub does not take it.
    """
    check_complete(folder)
    repo_id = create_repository(folder, repo_id, private, token)
    with with_code(folder) as complete:
        write_card(complete, repo_id, **card_fields)
        files = published_files(complete)
        with explained(folder, repo_id, token):
            api = HfApi(token=token)
            try:
                present = api.list_repo_files(repo_id, revision=revision)
            except EntryNotFoundError:  # a new repository without any file
                present = []
            stale = [name for name in present if any(fnmatch(name, pattern) for pattern in STALE)]
            operations = [CommitOperationAdd(name, content) for name, content in files.items()]
            operations += [CommitOperationDelete(name) for name in stale if name not in files]
            return api.create_commit(repo_id, operations, commit_message=message, revision=revision)


@contextmanager
def with_code(folder: Path) -> Iterator[Path]:
    """The folder, or while this lasts a copy that holds the code of its model and tokenizer, if it holds none."""
    config = read_json(folder / CONFIG_NAME)
    names = config.get("architectures") or [""]
    head = find_head(config.get("model_type", ""), names[0])
    if "auto_map" in config or head is None:
        yield folder
        return
    _, model_class = head
    with TemporaryDirectory() as name:
        copy = Path(name)
        model_class.from_pretrained(folder).save_pretrained(copy)
        if (folder / TOKENIZER_CONFIG_FILE).exists():
            AutoTokenizer.from_pretrained(folder).save_pretrained(copy)
        rewritten = (CONFIG_NAME, TOKENIZER_CONFIG_FILE)  # with the code's place
        shutil.copytree(folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*rewritten))
        yield copy


def create_repository(folder: Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Make sure that the repository is there and may be written to; returns its full id."""
    with explained(folder, repo_id, token):
        if (token or get_token()) is None:
            raise ValueError("there is no token; log in with `hf auth login` or set HF_TOKEN to a write token")
        return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


@contextmanager
def explained(folder: Path, repo_id: str, token: str | None) -> Iterator[None]:
    """Turn what goes wrong on the way to the Hub into a message that says what to do."""
    try:
        yield
    except Exception as error:  # of the system, of huggingface_hub, of whichever HTTP library it uses
        reason = redact(" ".join(str(error).split()).rstrip("."), token) or type(error).__name__
        raise PublishError(
            f"{repo_id} was not published: {reason}. Whatever {folder} holds is untouched; "
            f"a finished run is pushed with: latentlm publish {folder} {repo_id}"
        ) from error
