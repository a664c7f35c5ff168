"""lm-eval models of our own; importing this module registers them, since lm-eval discovers no plug-ins.

An architecture needs an adapter only when lm-eval's `hf` model cannot score it: when it is no causal language model
over its own tokens, say because it scores words or codes. Its row of the table names one, a subclass of
`lm_eval.api.model.TemplateLM` or `lm_eval.models.huggingface.HFLM`, and `--model <model type>` finds it. Every causal
model runs as `--model hf`, for which our command takes `hf-one-begin`.
"""

from lm_eval.api.registry import register_model

from latentlm.architectures import ARCHITECTURES, resolve

from .causal import OneBeginLM

register_model("hf-one-begin")(OneBeginLM)
for row in ARCHITECTURES.values():
    if row.adapter is not None:
        register_model(row.model_type)(resolve(row.adapter))
