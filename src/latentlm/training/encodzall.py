"""Training of EncodZall, in which clean rows are corrupted when they are used, with a strength that a PID controller
may set."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from latentlm.runs.arguments import LatentTrainingArguments
from latentlm.runs.recipe import RecipeError

from ..models.encodzall_words import FRAME_IDS, find_words
from .learned_dropout import LearnedDropoutTrainer
from .masking import WORD_SHARE, CorruptedBatch, join_batches, mask_texts
from .metrics import Count, Mean
from .noise import MIXTURE, NoiseTables, check_mixture, corrupt_texts, default_tables
from .pid import PIDCallback
from .randomness import row_keys, uniforms
from .samples import write_texts

NOISES = ("mask", "realistic", "mixed")
MIXED_STREAM = 3  # stream of random numbers that chooses the kind of noise; the noise itself uses 0 to 2


@dataclass(repr=False)  # inherits `__repr__` of transformers, which hides tokens
class EncodzallTrainingArguments(LatentTrainingArguments):
    """`LatentTrainingArguments` with the options of the noise that the model learns to repair."""

    noise: str = field(
        default="mask",
        metadata={"help": "'mask' (phase 1), 'realistic' (phase 2), or 'mixed': a row has one of both."},
    )
    noise_mask_share: float = field(default=0.25, metadata={"help": "Share of the rows that have masks, if mixed."})
    noise_word_share: float = field(
        default=WORD_SHARE, metadata={"help": "Share of the strength of masks that hides words; the rest, characters."}
    )
    noise_strength: float = field(default=0.3, metadata={"help": "Strength in [0, 1], at the start where it moves."})
    noise_set_point: float | None = field(
        default=None, metadata={"help": "Loss on corrupted bytes (nats) that a PID loop holds by moving the strength."}
    )
    noise_strength_min: float = field(
        default=0.1, metadata={"help": "The loop does not go below; with too little noise nothing is learned."}
    )
    noise_strength_max: float = field(default=1.0, metadata={"help": "The loop does not go above."})
    noise_kp: float = field(default=0.1, metadata={"help": "Gain of the change of the error."})
    noise_ki: float = field(default=0.01, metadata={"help": "Gain of the error."})
    noise_kd: float = field(default=0.0, metadata={"help": "Gain of the change of that change."})
    noise_eval_strength: float = field(
        default=0.3, metadata={"help": "Strength in evaluations, which all have the same noise."}
    )
    noise_mixture: dict | None = field(default=None, metadata={"help": "Weight of each kind; all alike by default."})
    noise_tables: str | None = field(default=None, metadata={"help": "File from `latentlm noise`."})

    def __post_init__(self):
        super().__post_init__()
        if self.neftune_noise_alpha is not None:
            raise ValueError(
                f"neftune_noise_alpha is {self.neftune_noise_alpha}, but NEFTune scales its noise by the length of a "
                "text, and embeddings here are of rows that words of many texts share; it must be None."
            )
        if self.noise not in NOISES:
            raise ValueError(f"noise is {self.noise!r}, but must be one of {', '.join(NOISES)}.")
        for name in ("noise_eval_strength", "noise_mask_share", "noise_word_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must lie in [0, 1].")
        if self.noise_mixture is not None:
            check_mixture(self.noise_mixture)
        self.make_pid()

    def check_files(self) -> None:
        super().check_files()
        if self.noise_tables is not None:
            NoiseTables.load(Path(self.noise_tables))

    def make_pid(self) -> PIDCallback:
        """Return the controller with these options."""
        return PIDCallback(
            self.noise_strength,
            self.noise_set_point,
            self.noise_strength_min,
            self.noise_strength_max,
            self.noise_kp,
            self.noise_ki,
            self.noise_kd,
        )


class EncodzallTrainer(LearnedDropoutTrainer):
    """[`LearnedDropoutTrainer`] for [`EncodzallForMaskedDenoising`]. Its rows are clean texts
    (`latentlm.data.TextDataset`).

    A row is corrupted when its batch is used. The random numbers depend only on the row, the seed and the optimizer
    step, so the noise is the same for any number of processes and after a resume. The CPU corrupts the rows and packs
    their words into few different shapes before the batch is copied to the accelerator, so that the forward needs no
    synchronization. The logs of [`PIDCallback.logs`] are added to those of training. An evaluation adds, for the
    sequence decoder with teacher forcing, if it is trained:

        eval_corrupted_loss, eval_corrupted_accuracy: cross-entropy (nats) and accuracy on bytes that were corrupted;
        eval_untouched_accuracy: accuracy on all other bytes;
        eval_exact_words: share of the corrupted words of which every byte is right;

    and for a gate, which predicts that a word was changed if that is more likely than not:

        eval_gate_recall: share of the changed words that are predicted to be changed;
        eval_gate_precision: share of the words predicted to be changed that were changed.

    A metric is left out if its denominator is 0.

    Raises:
        RecipeError: if an option needs what the model lacks: `noise_set_point` a sequence decoder that is trained, a
            contrastive loss two texts in a batch.
    """

    auto_class = AutoModelForSeq2SeqLM
    arguments_class = EncodzallTrainingArguments
    prepares_on_cpu = True
    measures_masks = False  # masks belong to the slots of packed words, not to tokens
    _corrupted: torch.Tensor  # `(B, T)`, bool, which bytes of the last batch were corrupted

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.check_losses()
        self.add_callback(self.args.make_pid())
        path = self.args.noise_tables
        self._tables = default_tables() if path is None else NoiseTables.load(Path(path))

    def check_losses(self) -> None:
        config, args = self.model_config, self.args
        if args.noise_set_point is not None and not self.unwrapped_model.trains_sequence_decoder:
            raise RecipeError(
                f"noise_set_point is {args.noise_set_point}, a loss of the sequence decoder, which is not trained "
                "(model.sequence_loss_weight is 0, with a gate): it must be null."
            )
        if config.contrastive_loss_weight and args.per_device_train_batch_size * args.world_size < 2:
            raise RecipeError(
                f"per_device_train_batch_size is {args.per_device_train_batch_size}, but model.contrastive_loss_weight "
                f"{config.contrastive_loss_weight} ranks the texts of a batch against each other: at least 2."
            )

    @property
    def pid(self) -> PIDCallback:
        """The controller. A resume replaces it, so it is looked up among the callbacks."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, PIDCallback))

    def predicted(self, labels: torch.Tensor) -> torch.Tensor:
        return labels

    # ---- Corruption ----

    def prepare_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # The batch is on the CPU, except that of a stream which one process distributes.
        ids, labels = inputs["input_ids"].cpu(), inputs["labels"].cpu()
        if self.model.training:
            strength, step = self.pid.strength, self.state.global_step + 1
        else:
            strength, step = self.args.noise_eval_strength, 0
        batch = self.corrupt(ids, strength, step)
        self._corrupted = batch.corrupted.to(self.args.device)
        pad, missing = self.model_config.pad_token_id, (0, ids.shape[1] - batch.input_ids.shape[1])
        prepared = {
            "input_ids": nn.functional.pad(batch.input_ids, missing, value=pad),
            "attention_mask": nn.functional.pad(batch.attention_mask, missing),
            "word_ids": nn.functional.pad(batch.word_ids, missing, value=-1),
            "labels": labels,
        }
        if self.model_config.contrastive_loss_weight and self.model.training:
            prepared["clean_input_ids"] = ids
        if batch.target_word_ids is not None:
            prepared["target_word_ids"] = batch.target_word_ids
        prepared |= self.unwrapped_model.pack(**prepared, bucketed=True)
        return super().prepare_batch(prepared)

    def corrupt(self, ids: torch.Tensor, strength: float, step: int) -> CorruptedBatch:
        """Return clean texts `(B, T)` with the kind of noise of this run, at a strength in [0, 1]."""
        real = ids != self.model_config.pad_token_id
        keys = row_keys((row[is_real].numpy() for row, is_real in zip(ids, real, strict=True)), self.args.seed, step)
        longest = self.model_config.max_word_bytes
        mixture, aligned = self.args.noise_mixture or MIXTURE, bool(self.model_config.gate_loss_weight)
        share = {"mask": 1.0, "realistic": 0.0}.get(self.args.noise, self.args.noise_mask_share)
        masked = torch.from_numpy(uniforms(keys, 1, MIXED_STREAM)[:, 0] < share)
        batches: dict[bool, CorruptedBatch] = {}
        for kind in (True, False):
            rows = masked == kind
            if not rows.any():
                continue
            texts = ids[rows], real[rows], strength, keys[rows.numpy()], longest
            if kind:
                batches[kind] = mask_texts(*texts, self.args.noise_word_share, aligned)
            else:
                batches[kind] = corrupt_texts(*texts, mixture, self._tables, aligned)
        return join_batches(batches, masked)

    def after_training_forward(self, inputs: dict[str, Any], outputs: Any) -> None:
        if self.args.noise_set_point is not None:
            self.pid.add(*corrupted_loss(outputs["logits"].detach(), inputs["labels"], self._corrupted))

    def training_logs(self) -> dict[str, float]:
        return super().training_logs() | self.pid.logs()

    # ---- Evaluation ----

    def evaluation_counts(self, inputs: dict[str, Any], outputs: Any) -> dict[str, Count]:
        counts = super().evaluation_counts(inputs, outputs)
        if outputs.get("gate_logits") is not None:
            changed, flagged = inputs["changed"] == 1, (outputs["gate_logits"] > 0) & (inputs["changed"] != -100)
            counts["gate_recall"] = Mean((flagged & changed).sum(), changed.sum())
            counts["gate_precision"] = Mean((flagged & changed).sum(), flagged.sum())
        labels, logits, corrupted = inputs["labels"], outputs.get("logits"), self._corrupted
        if logits is None:
            return counts
        scored = labels != -100
        right = logits.argmax(-1) == labels
        # A word is wrong if one of its bytes is wrong.
        ids = torch.where(scored, labels, self.model_config.pad_token_id)
        word_ids = find_words(ids, self.model_config.max_word_bytes)

        def any_of_word(flags: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(word_ids).scatter_reduce(1, word_ids, flags.long(), "amax", include_self=True) > 0

        touched = any_of_word(scored & corrupted)
        counts["corrupted_loss"] = Mean(*corrupted_loss(logits, labels, corrupted))
        counts["corrupted_accuracy"] = Mean((scored & corrupted & right).sum(), (scored & corrupted).sum())
        counts["untouched_accuracy"] = Mean((scored & ~corrupted & right).sum(), (scored & ~corrupted).sum())
        counts["exact_words"] = Mean((touched & ~any_of_word(scored & ~right)).sum(), touched.sum())
        return counts

    def write_samples(self) -> None:
        """Write noisy and repaired beginnings of a few validation rows to `samples.jsonl` and the console."""
        model = self.unwrapped_model
        if self.processing_class is None or not self.is_world_process_zero() or self.is_sharded:
            return
        longest = min(self.args.sample_new_tokens, self.model_config.max_position_embeddings)
        for row in self.spread_validation_rows(self.args.sample_prompts):
            ids = torch.as_tensor(row["input_ids"])[None, :longest].clone()
            batch = self.corrupt(ids, self.args.noise_eval_strength, 0)
            noisy = self.processing_class.decode([i for i in batch.input_ids[0].tolist() if i not in FRAME_IDS])
            gated = self.model_config.gate_loss_weight and self.model_config.edit_cost is not None
            if gated and batch.input_ids.max() <= FRAME_IDS[-1]:  # `denoise` takes texts without masks
                [repaired] = model.denoise([noisy])
            elif not model.trains_sequence_decoder:
                continue  # the sequence decoder, which would write the text, is not trained
            else:
                generated = model.generate(
                    batch.input_ids.to(self.args.device),
                    attention_mask=batch.attention_mask.to(self.args.device),
                    word_ids=batch.word_ids.to(self.args.device),
                    max_length=longest + 1,
                    do_sample=False,
                )
                repaired = self.processing_class.decode(generated[0], skip_special_tokens=True)
            texts = {"noisy": noisy, "repaired": repaired}
            write_texts(texts, self.state.global_step, self.run_folder, self.console)


def corrupted_loss(
    logits: torch.Tensor, labels: torch.Tensor, corrupted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the cross-entropy, in nats, over the corrupted bytes, and their number.

    Args:
        logits: `(B, T, V)`.
        labels: `(B, T)`, int64, -100 where there is no byte.
        corrupted: `(B, T)`, bool.
    """
    targets = labels.masked_fill(~corrupted, -100)
    total = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
    return total, (targets != -100).sum()
