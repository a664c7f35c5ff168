"""Checks of the options of a trainer: arguments without effect, and kinds of parallelism that would change results."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trainer import LatentTrainer


def check_arguments(trainer_class: "type[LatentTrainer]", kwargs: dict[str, Any]) -> None:
    """Raise ValueError unless the arguments of the constructor have a model, and training arguments of its class."""
    if kwargs.get("model_init") is not None or kwargs.get("model") is None:
        raise ValueError(
            "model_init would build the model anew when training starts, without what its trainer has prepared, so "
            "it is not taken (nor is hyperparameter_search, which needs it); give a `model`, and one run for each "
            "set of hyperparameters."
        )
    expected = trainer_class.arguments_class
    if not isinstance(args := kwargs.get("args"), expected):
        raise ValueError(
            f"args is {type(args).__name__}, but {trainer_class.__name__} reads fields of {expected.__name__}; "
            "give these."
        )


def check_parallelism(trainer: "LatentTrainer") -> None:
    """Raise ValueError if sequences would be split over processes, tied parameters would be split unevenly, or the best
    checkpoint would be loaded into a sharded model."""
    for name, size in (("cp_size", trainer.get_cp_size()), ("sp_size", trainer.get_sp_size())):
        if size > 1:
            raise ValueError(f"parallelism_config: {name} is {size}, but rows are not divided here; it must be 1.")
    if trainer.is_distributed_loading_by_transformers and trainer.args.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end is True, but transformers cannot load weights into a model that was sharded when "
            "it was loaded (FSDP2 at load time): it must be False; load the best checkpoint afterwards."
        )
    if trainer.is_distributed_loading_by_transformers and trainer.model.all_tied_weights_keys:
        vocab_size, parts = trainer.model_config.vocab_size, trainer.args.world_size
        if vocab_size % parts:
            # If the parts differ in size, torch pads a copy of the output layer, which then gets no updates.
            raise ValueError(
                f"vocab_size {vocab_size} is not a multiple of the {parts} processes that share the tied embedding "
                f"(FSDP2 at load time): set it to {vocab_size + -vocab_size % parts}."
            )
