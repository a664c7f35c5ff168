"""Registration of latentlm's lm-eval models on import, because lm-eval does not discover plug-ins.

An architecture needs an adapter only if lm-eval's `hf` model cannot score it, because it is not a causal language model
over its own tokens and scores, for example, words or codes. `ARCHITECTURES` names the adapter, which is a subclass of
`lm_eval.api.model.LM`, and `--model <model type>` selects it. All causal models run as `--model hf`, for which
`latentlm evaluate` uses `hf-one-begin`.
"""

from lm_eval.api.registry import register_model

from latentlm.architectures import ARCHITECTURES, resolve

from .causal import OneBeginLM

register_model("hf-one-begin")(OneBeginLM)
for row in ARCHITECTURES.values():
    if row.adapter is not None:
        register_model(row.model_type)(resolve(row.adapter))
