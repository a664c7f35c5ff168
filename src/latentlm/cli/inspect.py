"""Show where an Abstractinator cuts a text: segments in colours, the entropy above them, the codes of every level.

latentlm inspect runs/abstractinator-tiny "A text to look at." --out segments.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "latentlm inspect",
        description=str(__doc__).split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="run folder, or name on the Hub")
    parser.add_argument("text", help="the text, or a file that holds it")
    parser.add_argument("--out", type=Path, default=Path("segments.png"), help="a .png or .html file")
    parser.add_argument("--bytes", type=int, default=2000, help="look at the first ones only")
    parser.add_argument("--trust_remote_code", action="store_true", help="for models that latentlm does not know")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; mistakes in the input end with a message and exit status 1, not with a traceback."""
    options = build_parser().parse_args(arguments)
    if options.out.suffix not in (".png", ".html"):
        sys.exit(f"latentlm inspect: --out is {options.out}, but must end with .png or .html.")
    from transformers import AutoModelForCausalLM

    from latentlm.architectures import ARCHITECTURES, architecture, resolve
    from latentlm.evaluation.segments import draw, write_html

    try:
        is_file = len(options.text) < 4096 and Path(options.text).is_file()
        whole = Path(options.text).read_bytes() if is_file else options.text.encode("utf-8", "surrogateescape")
        data = whole[: options.bytes]
        model = AutoModelForCausalLM.from_pretrained(options.model, trust_remote_code=options.trust_remote_code)
        inspect = architecture(model.config.model_type).inspection
        if inspect is None:
            can = ", ".join(name for name, row in ARCHITECTURES.items() if row.inspection is not None)
            raise ValueError(f"{options.model} is a {model.config.model_type}; only these have segments: {can}.")
        inspection = resolve(inspect)(model, data)
    except (OSError, ValueError) as error:
        sys.exit(f"latentlm inspect: {error}")
    (draw if options.out.suffix == ".png" else write_html)(inspection, options.out)
    for level in range(len(inspection.segments)):
        pieces = inspection.pieces(level)
        print(f"level {level + 1}: {len(pieces)} segments of {len(data) / len(pieces):.1f} bytes")
        print("  " + "|".join(piece.decode("utf-8", "backslashreplace").replace("\n", "↵") for piece, _ in pieces[:40]))
    print(f"Picture: {options.out}")
