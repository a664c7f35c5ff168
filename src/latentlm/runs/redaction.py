"""What no file and no message may hold: tokens, keys, and the user in a URL."""

import os
import re
from collections.abc import Sequence

from huggingface_hub import get_token

HIDDEN = "<hidden>"
SECRET_NAME = re.compile(r"(token|key|secret|password)$", re.IGNORECASE)
URL_USER = re.compile(r"(?<=://)[^/\s@]+@")  # `user:password@`
SHORTEST = 6  # characters; what is shorter is replaced only where its name tells


def redact(text: str, *secrets: str | None) -> str:
    """`text` without users in URLs, without `secrets`, and without the token that is logged in or a secret of the
    environment."""
    environment = (value for name, value in os.environ.items() if SECRET_NAME.search(name))
    for secret in sorted({*secrets, get_token(), *environment} - {None}, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, HIDDEN)
    return URL_USER.sub("", text)


def redact_command(arguments: Sequence[str], *secrets: str | None) -> list[str]:
    """A command line without secrets, also of flags that this package does not know (`--api_key`)."""
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
    """Whether a secret may follow; with `-c` it is a whole program."""
    return argument == "-c" or (argument.startswith("-") and SECRET_NAME.search(argument) is not None)
