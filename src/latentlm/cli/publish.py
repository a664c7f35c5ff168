"""Push a run folder or one of its checkpoints to the Hub.

latentlm publish runs/ar-encoder-decoder-tiny organisation/name --private
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("latentlm publish", description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, help="run folder, or checkpoint-<step> inside one")
    parser.add_argument("repo_id", help="organisation/name, or name for your own account; created if needed")
    parser.add_argument(
        "--private", action="store_true", default=None, help="create the repository as a private one (default: public)"
    )
    parser.add_argument("--message", default="Publish with latentlm", help="commit message (default: %(default)s)")
    parser.add_argument(
        "--language", help="of the text, for the card: `en`; known of the documentation inside Python (default: unsaid)"
    )
    parser.add_argument("--license", help="of the weights, for the card: `apache-2.0` (default: unsaid)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; mistakes in the input end with a message and exit status 1, not with a traceback."""
    options = build_parser().parse_args(arguments)
    from latentlm.hub.files import PublishError
    from latentlm.hub.push import publish
    from latentlm.runs.redaction import redact

    said = {"language": options.language, "license": options.license}
    fields = {name: value for name, value in said.items() if value is not None}
    try:
        commit = publish(options.folder, options.repo_id, message=options.message, private=options.private, **fields)
    except PublishError as error:
        sys.exit(redact(f"latentlm publish: {error}"))
    print(redact(f"Published: {commit.repo_url}"))
