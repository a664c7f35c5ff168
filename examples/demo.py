"""Try three models in a browser: segments of an Abstractinator, repairs of an EncodZall, tokens of an FSQ tokenizer.

python examples/demo.py [ABSTRACTINATOR [ENCODZALL [TOKENIZER]]]    # names or run folders; needs 'latentlm[demo]'
"""

import math
import sys
from pathlib import Path

import gradio as gr
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from latentlm.evaluation.segments import inspect

names = [f"hub_configs/{name}" for name in ("abstractinator-wikitext2", "encodzall-wikitext2", "fsq-tokenizer-tiny")]
names[: len(sys.argv) - 1] = sys.argv[1:]
for name in names:
    if name.startswith(("runs/", "hub_configs/")) and not Path(name).is_dir():
        sys.exit(f"There is no {name}: name a model, or make this run as examples/README.md says.")
pyramid = AutoModelForCausalLM.from_pretrained(names[0], trust_remote_code=True)
repairer = AutoModelForSeq2SeqLM.from_pretrained(names[1], trust_remote_code=True)
words, pieces = (AutoTokenizer.from_pretrained(name, trust_remote_code=True) for name in names[1:])
has_gate = bool(getattr(repairer.config, "gate_loss_weight", 0))  # without one there is no threshold


def segments(text: str) -> list[tuple[str, float]]:
    inspection = inspect(pyramid, text.encode())
    starts = {segment: i for i, segment in reversed([*enumerate(inspection.segments[0])])}
    pairs = zip(inspection.pieces(0), sorted(starts.values()), strict=True)
    return [(piece.decode(errors="replace"), inspection.entropies[i] / math.log(256)) for (piece, _), i in pairs]


def repair(text: str, threshold: float) -> str:
    return repairer.denoise([text], words, **({"threshold": threshold} if has_gate else {}))[0]


def tokens(text: str) -> list[tuple[str, str]]:
    return [(pieces.decode([i]), str(i)) for i in pieces(text, add_special_tokens=False)["input_ids"]]


def box(text: str) -> gr.Textbox:
    return gr.Textbox(text, label="text")


slider = gr.Slider(0, 10, repairer.config.denoise_threshold, label="threshold, nats", interactive=has_gate)
segments_output = gr.HighlightedText(label="segments, by the entropy of their first byte")
parts = {
    "Abstractinator": (segments, box("The album was released in the United Kingdom in 2004 ."), segments_output),
    "EncodZall": (repair, [box("The brigde would be rebuilt nxet year ."), slider], gr.Textbox(label="repaired")),
    "FSQ tokenizer": (tokens, box("The river flows to the sea."), gr.HighlightedText(label="tokens, ids")),
}
tabs = [gr.Interface(*part, flagging_mode="never") for part in parts.values()]
gr.TabbedInterface(tabs, list(parts), title="latentlm").launch()
