"""Removal of secrets from files and messages: tokens, keys, and users in URLs."""

import os
import re
from collections.abc import Sequence

from huggingface_hub import get_token

HIDDEN = "<hidden>"
SECRET_NAME = re.compile(r"(token|key|secret|password)$", re.IGNORECASE)
URL_USER = re.compile(r"(?<=://)[^/\s@]+@")  # `user:password@`
SHORTEST = 6  # least number of characters of a secret that is replaced in any text


def redact(text: str, *secrets: str | None) -> str:
    """Return `text` without users in URLs, `secrets`, the token of the login to the Hub, and secrets of environment
    variables."""
    environment = (value for name, value in os.environ.items() if SECRET_NAME.search(name))
    for secret in sorted({*secrets, get_token(), *environment} - {None}, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, HIDDEN)
    return URL_USER.sub("", text)


def redact_command(arguments: Sequence[str], *secrets: str | None) -> list[str]:
    """Return a command line without secrets, including the values of unknown flags with a name like `--api_key`."""
    shown: list[str] = []
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        if equals and is_secret_flag(flag):
            shown.append(f"{flag}={HIDDEN}")
        elif shown and is_secret_flag(shown[-1]):
            shown.append(HIDDEN)
        else:
            shown.append(redact(argument, *secrets))
    return shown


def is_secret_flag(argument: str) -> bool:
    """Return whether the value of a flag may be a secret. That of `-c` is a whole program, which may contain one."""
    return argument == "-c" or (argument.startswith("-") and SECRET_NAME.search(argument) is not None)
