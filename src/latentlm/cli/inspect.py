"""Show an Abstractinator's segments of a text: in colours, with the entropy above them and the codes of every level.

latentlm inspect runs/abstractinator-tiny "A text to look at." --out segments.png
latentlm inspect runs/abstractinator-tiny book.txt --codes 10    # also what the codes stand for
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import check_place


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "latentlm inspect",
        description=str(__doc__).split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="run folder, or name on the Hub")
    parser.add_argument("text", help="the text, or a file that holds it")
    parser.add_argument("--out", type=Path, default=Path("segments.png"), help="a .png or .html file")
    parser.add_argument("--bytes", type=int, default=2000, help="of the text in the picture; no more than a context")
    parser.add_argument("--codes", type=int, default=0, help="of each level, print the segments of so many codes")
    parser.add_argument("--trust_remote_code", action="store_true", help="for models that latentlm does not know")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; mistakes in the input end with a message and exit status 1, not with a traceback."""
    options = build_parser().parse_args(arguments)
    if options.out.suffix not in (".png", ".html"):
        sys.exit(f"latentlm inspect: --out is {options.out}, but must end with .png or .html.")
    for name, least in {"bytes": 1, "codes": 0}.items():
        if getattr(options, name) < least:
            sys.exit(f"latentlm inspect: --{name} is {getattr(options, name)}, but must be at least {least}.")
    if os.path.isdir(options.text):
        sys.exit(f"latentlm inspect: {options.text} is a folder, but what is shown is a text or a file that holds it.")
    from transformers import AutoConfig, AutoModelForCausalLM

    from latentlm.architectures import ARCHITECTURES, architecture, resolve
    from latentlm.evaluation.segments import draw, segments_of_codes, write_html

    try:
        is_file = os.path.isfile(options.text)  # that of a path is an error where the text is long
        whole = Path(options.text).read_bytes() if is_file else options.text.encode("utf-8", "surrogateescape")
        check_place(options.model)
        loader: Any = AutoModelForCausalLM
        trusted = {"trust_remote_code": options.trust_remote_code}
        config: Any = AutoConfig.from_pretrained(options.model, **trusted)
        inspect = architecture(config.model_type).inspection
        if inspect is None:
            can = ", ".join(name for name, row in ARCHITECTURES.items() if row.inspection is not None)
            raise ValueError(
                f"{options.model} has the model type {config.model_type}; only these have segments: {can}."
            )
        model = loader.from_pretrained(options.model, **trusted)
        data = whole[: min(options.bytes, config.max_position_embeddings - 1)]  # and the begin
        inspection = resolve(inspect)(model, data)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        (draw if options.out.suffix == ".png" else write_html)(inspection, options.out)
    except (OSError, ValueError) as error:
        sys.exit(f"latentlm inspect: {error}")
    for level in range(len(inspection.segments)):
        pieces = inspection.pieces(level)
        print(f"level {level + 1}: {len(pieces)} segments of {len(data) / len(pieces):.1f} bytes")
        print("  " + "|".join(piece.decode("utf-8", "backslashreplace").replace("\n", "↵") for piece, _ in pieces[:40]))
    print(f"Picture: {options.out}")
    for level in range(len(inspection.segments) if options.codes else 0):
        segments = segments_of_codes(model, whole, level)
        most_used = sorted(segments.items(), key=lambda item: -item[1].total())
        print(f"level {level + 1}: {len(segments)} codes in {len(whole):,} bytes, the most used of them:")
        for code, counts in most_used[: options.codes]:
            commonest = ((piece.decode("utf-8", "backslashreplace"), n) for piece, n in counts.most_common(6))
            shown = ", ".join(f"{piece!r} {n}" for piece, n in commonest)
            print(f"  {'/'.join(map(str, code))} ({counts.total()} segments): {shown}")
