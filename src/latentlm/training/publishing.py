"""`PublishingTrainer`, in which the three methods of `Trainer` that write to the Hub use `latentlm.hub`."""

from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer

from latentlm.hub.card import write_card
from latentlm.hub.push import create_repository, publish
from latentlm.runs.run_folder import folder_of


class PublishingTrainer(Trainer):
    """A `Trainer` that publishes the files of [`latentlm.hub.files.published_files`] and a model card in one commit."""

    @property
    def run_folder(self) -> Path:
        """The folder with the files of the run."""
        return folder_of(self.args)

    @property
    def repo_id(self) -> str:
        """The repository to publish to: the id that the Hub returned, else `hub_model_id`, else the name of the run
        folder."""
        return self.hub_model_id or self.args.hub_model_id or self.run_folder.absolute().name

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository before training, so that a missing token is an error at the start."""
        if self.is_world_process_zero():
            private = self.args.hub_private_repo if private is None else private
            self.hub_model_id = create_repository(self.run_folder, self.repo_id, private, token or self.args.hub_token)

    def create_model_card(self, *args: Any, **fields: Any) -> None:
        """Write README.md and the curves into the run folder. `fields` are those of [`latentlm.hub.card.write_card`].

        Raises:
            TypeError: for positional arguments.
        """
        if args:
            raise TypeError("the fields of a model card have names: create_model_card(language='en').")
        if self.is_world_process_zero():
            write_card(self.run_folder, self.repo_id, **fields)

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]  (the one of Trainer returns None as well)
        self,
        commit_message: str | None = "Publish with latentlm",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **fields: Any,
    ) -> CommitInfo | None:
        """Save the model, write its card and push both. Return the commit on the main process, and None on others.

        The upload is always complete when this method returns, also without `blocking`. `fields` are those of
        [`latentlm.hub.card.write_card`].

        Raises:
            PublishError: if the upload fails. The run folder is complete then.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return publish(
            self.run_folder,
            self.repo_id,
            message=commit_message or "Publish with latentlm",
            private=self.args.hub_private_repo if private is None else private,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            **fields,
        )
