"""lm-eval models of our own; importing this module registers them, since lm-eval discovers no plug-ins.

An architecture needs an adapter only when lm-eval's `hf` model cannot score it: when it is no causal language model
over its own tokens, say because it scores words or codes. It then subclasses `lm_eval.api.model.TemplateLM` or
`lm_eval.models.huggingface.HFLM` in a module of its own under `@lm_eval.api.registry.register_model("<name>")`, and
that module is imported here. Every causal model here runs as `--model hf`, for which our command takes `causal`.
"""

from . import abstractinator, causal, encodzall

__all__ = ["abstractinator", "causal", "encodzall"]
