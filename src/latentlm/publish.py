"""Push a run folder or one of its checkpoints to the Hub.

python -m latentlm.publish runs/ar-encoder-decoder-tiny organisation/name --private
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from latentlm.hub.files import PublishError
from latentlm.hub.push import publish
from latentlm.runs.redaction import redact


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; mistakes in the input end with a message and exit status 1, not with a traceback."""
    parser = argparse.ArgumentParser("latentlm.publish", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="run folder, or checkpoint-<step> inside one")
    parser.add_argument("repo_id", help="organisation/name, or name for your own account; created if needed")
    parser.add_argument("--private", action="store_true", default=None, help="create the repository as a private one")
    parser.add_argument("--message", default="Publish with latentlm", help="commit message")
    parser.add_argument("--language", help="of the text, for the card: `en`; known of the documentation inside Python")
    given = parser.parse_args(arguments)
    fields = {} if given.language is None else {"language": given.language}
    try:
        commit = publish(given.folder, given.repo_id, message=given.message, private=given.private, **fields)
    except PublishError as error:
        sys.exit(redact(f"latentlm.publish: {error}"))
    print(redact(f"Published: {commit.repo_url}"))


if __name__ == "__main__":
    main()
