"""EncodZall with Encoder 1 as it was initialised: what the original did without meaning to, whose packing cut its
gradients off."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from latentlm.runs import Recipe


class FrozenWordEncoder(TrainerCallback):
    """The layers inside a word get no gradient, and with none AdamW leaves them alone."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        for parameter in model.model.word_encoder.parameters():
            parameter.requires_grad_(False)


def prepare(recipe: Recipe) -> list[TrainerCallback]:
    return [FrozenWordEncoder()]
