"""Types that a checker cannot infer: the type of a list's modules, and the class that a mixin is mixed into."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import nn
from transformers import GenerationMixin
from transformers.modeling_utils import PreTrainedModel

M = TypeVar("M", bound=nn.Module)


class ModuleList(nn.ModuleList, Generic[M]):
    """`nn.ModuleList` whose modules have one type, which indexing and iteration return."""

    if TYPE_CHECKING:

        def __init__(self, modules: Iterable[M] | None = None) -> None: ...
        def __iter__(self) -> Iterator[M]: ...
        def __getitem__(self, idx: int) -> M: ...  # pyright: ignore[reportIncompatibleMethodOverride]


if TYPE_CHECKING:

    class GenerativeModel(PreTrainedModel, GenerationMixin):
        """Goes first among the bases of a model that generates, or is that of a mixin which does; empty when it runs.

        Three methods of transformers take as `self` a protocol that no model satisfies (one whose `device` can be set).
        """

        def generate(self, *args: Any, **kwargs: Any) -> Any: ...
        def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any: ...
        def _prepare_generated_length(self, *args: Any, **kwargs: Any) -> Any: ...

else:

    class GenerativeModel:
        pass


__all__ = ["GenerativeModel", "ModuleList"]
