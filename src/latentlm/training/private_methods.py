"""The list of all private methods of transformers' `Trainer` that the trainers override or call.

transformers may change these methods in any minor release. tests/test_trainer_options.py fails if a method is missing,
is no longer called, has other parameters, or is used without being listed.
"""

PRIVATE_METHODS: dict[str, str] = {
    "_get_dataloader": "evaluations count each row once, and a stream for training begins anew when it ends",
    "_get_output_dir": "names the hidden folder in which a checkpoint is written",
    "_init_training_state": "a resumed run evaluates and saves as its arguments say, not those of the checkpoint",
    "_issue_warnings_after_load": "a checkpoint that does not fit the model is an error, not a warning",
    "_load_optimizer_and_scheduler": "a resumed run has the learning rates and decays of its arguments",
    "_prepare_inputs": "calls `prepare_batch` where a batch is still on the CPU, in training and evaluation alike",
    "_run_epoch": "a run that is resumed at its end trains no further; `Trainer` would take one step more",
    "_save": "saves all files of a model or none, with its own code and without pickled arguments",
    "_save_checkpoint": "a checkpoint is complete or invisible; `Trainer` writes it in place, file by file",
    "_set_signature_columns_if_needed": "keeps `extra_columns`, which the trainer reads and the model does not",
}
"""The private methods, each with the reason why no public one can replace it."""
