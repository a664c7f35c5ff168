"""The Hub: the model card, and pushing a run folder or a checkpoint."""
