"""Training of the FSQ autoencoder and of the language model on its codes."""

import math
from typing import Any

import torch
from transformers import AutoModel

from .learned_dropout import LearnedDropoutTrainer
from .metrics import Count, Histogram, Mean, Totals
from .trainer import LatentTrainer

MOST_CODES = 2**24
"""The largest number of codes whose uses an evaluation counts, in 128 MiB of memory."""


class CodeCollapseError(RuntimeError):
    """An error of joint training, whose codes have lost their diversity. Earlier checkpoints are complete."""


class FSQAutoencoderTrainer(LatentTrainer):
    """[`LatentTrainer`] for [`FSQAutoencoderModel`]. Its rows are chunks (`latentlm.data.ChunkDataset`).

    An evaluation adds:

        eval_perplexity: perplexity of a byte or end, which is exp(`eval_loss`);
        eval_byte_accuracy, eval_exact: share of bytes, and of chunks with their ends, that are reconstructed;
        eval_byte_accuracy_by_use, eval_exact_by_use: the same, weighted by the number of uses of a chunk in the text;
        eval_distinct_codes: number of distinct codes divided by that of chunks, if the levels give at most 2**24 codes.
    """

    auto_class = AutoModel
    extra_columns = ("use",)

    def predicted(self, labels: torch.Tensor) -> torch.Tensor:
        return labels

    def evaluation_counts(self, inputs: dict[str, Any], outputs: Any) -> dict[str, Count]:
        counts = super().evaluation_counts(inputs, outputs)
        labels, use = inputs["labels"], inputs["use"]
        scored = labels != -100
        right = (outputs["logits"][:, : labels.shape[1]].argmax(-1) == labels) & scored
        is_byte = scored & (labels < 256)
        real = scored.any(-1)  # filler rows have no labels
        exact = real & (right == scored).all(-1)
        num_bytes, bytes_right = is_byte.sum(-1), (right & is_byte).sum(-1)
        counts["byte_accuracy"] = Mean(bytes_right.sum(), num_bytes.sum())
        counts["exact"] = Mean(exact.sum(), real.sum())
        counts["byte_accuracy_by_use"] = Mean((bytes_right * use).sum(), (num_bytes * use).sum())
        counts["exact_by_use"] = Mean((exact * use).sum(), (real * use).sum())
        if self.model_config.num_codes <= MOST_CODES:
            counts["codes"] = Histogram(outputs["code_index"], real, self.model_config.num_codes)
        return counts

    def evaluation_results(self, totals: Totals) -> dict[str, float]:
        codes = totals.pop("codes") if "codes" in totals.numbers else None
        results = super().evaluation_results(totals)
        if "loss" in results:
            results["perplexity"] = math.exp(results["loss"])
        if codes is not None:
            results["distinct_codes"] = (codes > 0).sum().item() / codes.sum().item()
        return results


class FSQTrainer(LearnedDropoutTrainer):
    """[`LearnedDropoutTrainer`] for [`FSQForCausalLM`], which monitors the codes in joint training.

    Joint training logs `code_entropy`, the sum of the entropies of all digits over the vocabulary divided by its
    largest possible value, and `codes_moved`, the share of tokens whose code differs from that of the table.

    Raises:
        CodeCollapseError: if `code_entropy` falls below `min_code_entropy` of the configuration times its first value.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._first_entropy = self.code_statistics()["code_entropy"] if self.model_config.joint else None

    def training_logs(self) -> dict[str, float]:
        logs = super().training_logs()
        if self._first_entropy is not None:
            logs.update(self.code_statistics())
            least = self.model_config.min_code_entropy * self._first_entropy
            if logs["code_entropy"] < least:
                raise CodeCollapseError(
                    f"step {self.state.global_step}: code_entropy fell to {logs['code_entropy']:.3f}, below "
                    f"{least:.3f}, `min_code_entropy` times its first value. Raise model.reconstruction_loss_weight or "
                    "lower training.learning_rate, and start from an earlier checkpoint."
                )
        return logs

    def code_statistics(self) -> dict[str, float]:
        """Return `code_entropy` and `codes_moved` of the codes that the encoder computes now."""
        embedding = self.unwrapped_model.embedding
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
