"""Training of the FSQ autoencoder and of the language model on its codes."""

import math
from collections import defaultdict
from typing import Any

import torch
from transformers import AutoModel
from transformers.trainer_utils import EvalLoopOutput

from .learned_dropout import ParallelEncoderDecoderTrainer
from .trainer import LatentTrainer


class CodeCollapseError(RuntimeError):
    """Joint training lost the diversity of its codes; what was saved before is whole."""


class FSQAutoencoderTrainer(LatentTrainer):
    """[`LatentTrainer`] for [`FSQAutoencoderModel`]: rows are chunks (`latentlm.data.ChunkDataset`).

    An evaluation adds:

        eval_perplexity: of a byte or end, exp of `eval_loss`;
        eval_byte_accuracy, eval_exact: share of bytes, and of whole chunks with their ends, that come back;
        eval_byte_accuracy_by_use, eval_exact_by_use: the same, each chunk counted as often as the text uses it;
        eval_distinct_codes: distinct codes, as a share of the chunks.
    """

    auto_class = AutoModel

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "use" not in self._signature_columns:  # Trainer leaves out what the model does not take
            self._signature_columns.append("use")

    def predicted(self, labels: torch.Tensor) -> torch.Tensor:
        return labels

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        self._counts: dict[str, float] = defaultdict(float)
        self._codes: list[torch.Tensor] = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        counts = dict(zip(self._counts, self._sum_over_processes(list(self._counts.values())), strict=True))
        codes = self.accelerator.gather(torch.cat(self._codes))
        metrics = {"perplexity": math.exp(output.metrics[f"{metric_key_prefix}_loss"])}
        for weighted in ("", "_by_use"):
            if counts[f"chunks{weighted}"]:
                metrics[f"byte_accuracy{weighted}"] = counts[f"bytes_right{weighted}"] / counts[f"bytes{weighted}"]
                metrics[f"exact{weighted}"] = counts[f"exact{weighted}"] / counts[f"chunks{weighted}"]
        metrics["distinct_codes"] = len(codes[codes >= 0].unique()) / counts["chunks"]
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def add_to_evaluation(self, inputs: dict[str, Any], outputs: Any) -> None:
        super().add_to_evaluation(inputs, outputs)
        labels = inputs["labels"]
        scored = labels != -100
        right = (outputs["logits"][:, : labels.shape[1]].argmax(-1) == labels) & scored
        is_byte = scored & (labels < 256)
        real = scored.any(-1)  # rows that only fill up a batch have no labels
        each = {
            "chunks": real,
            "exact": real & (right == scored).all(-1),
            "bytes": is_byte.sum(-1),
            "bytes_right": (right & is_byte).sum(-1),
        }
        for name, values in each.items():
            self._counts[name] += values.sum().item()
            self._counts[f"{name}_by_use"] += (values * inputs["use"]).sum().item()
        self._codes.append(outputs["code_index"].where(real, -1))


class FSQTrainer(ParallelEncoderDecoderTrainer):
    """[`ParallelEncoderDecoderTrainer`] for [`FSQForCausalLM`]: leaves the frozen parts of the autoencoder frozen
    (loading forgets that they are), and watches over joint training.

    Joint training logs `code_entropy`, the entropy of the digits of all tokens' codes as a share of the largest
    possible one, and `codes_moved`, the share of tokens whose code is no longer that of the table.

    Raises:
        CodeCollapseError: if that entropy falls below `min_code_entropy` (of the configuration) times its first value.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.model.freeze()
        self._first_entropy = self.code_statistics()["code_entropy"] if self._config.joint else None

    def _training_logs(self) -> dict[str, float]:
        logs = super()._training_logs()
        if self._first_entropy is not None:
            logs.update(self.code_statistics())
            least = self._config.min_code_entropy * self._first_entropy
            if logs["code_entropy"] < least:
                raise CodeCollapseError(
                    f"step {self.state.global_step}: code_entropy fell to {logs['code_entropy']:.3f}, below "
                    f"{least:.3f}, `min_code_entropy` times its first value. Raise model.reconstruction_loss_weight or "
                    "lower training.learning_rate, and start from an earlier checkpoint."
                )
        return logs

    def code_statistics(self) -> dict[str, float]:
        """Entropy of the codes that the encoder gives now, and how many differ from the table."""
        embedding = self.accelerator.unwrap_model(self.model).embedding
        codes = embedding.encode_tokens()
        digits = embedding.fsq.digits(codes)
        shares = [
            torch.bincount(column, minlength=levels).double() / len(column)
            for column, levels in zip(digits.unbind(-1), embedding.fsq.levels, strict=True)
        ]
        entropy = sum(torch.special.entr(share).sum().item() for share in shares)
        return {
            "code_entropy": entropy / math.log(embedding.fsq.num_codes),
            "codes_moved": (codes != embedding.codes[embedding.codes >= 0]).double().mean().item(),
        }
