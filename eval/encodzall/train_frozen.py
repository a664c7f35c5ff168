"""`python -m latentlm.train` with Encoder 1 left as it was initialised: what the original did without meaning to, whose
packing cut its gradients off.

    python eval/encodzall/train_frozen.py RECIPE.yaml [--field value ...]
"""

import sys

from transformers import TrainerCallback

from latentlm.cli.train import recipe_from_command_line
from latentlm.training.run import train


class FrozenWordEncoder(TrainerCallback):
    """The layers inside a word get no gradient, and with none AdamW leaves them alone."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for parameter in model.model.word_encoder.parameters():
            parameter.requires_grad_(False)


if __name__ == "__main__":
    train(recipe_from_command_line(sys.argv[1:]), [FrozenWordEncoder()])
