"""What an `LLM` and an `AsyncLLM` do with adapters: load, list and unload them while requests run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from puna.entrypoints.loading import LoadedModel
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from puna.pipelines.lora import AdapterInfo, LoRAManager

__all__ = ["HasAdapters"]


class HasAdapters:
    """The adapters of a loaded model."""

    _loaded: LoadedModel

    def load_lora_adapter(
        self, name: str, path: str | Path, *, load_inplace: bool = False, is_pinned: bool = False
    ) -> AdapterInfo:
        """Loads an adapter; requests may name it from now on.

        Args:
            name: What requests will call it.
            path: A directory in PEFT's layout, or a GGUF file of llama.cpp's.
            load_inplace: Let a name that is in use stand for this adapter from now on. Requests that have begun keep
                the one that they began with.
            is_pinned: Keep it in memory whatever `lora_memory` says.

        Raises:
            InvalidRequestError: the model was loaded without adapters, or the name is none.
            AdapterError: the adapter cannot be read, or does not fit the model.
            AdapterExistsError: the name stands for an adapter with other content.
        """
        if name == self._loaded.name:
            raise InvalidRequestError(f"{name!r} is the model's own name", param="lora_name")
        return self._adapters.load_adapter(name, path, load_inplace=load_inplace, is_pinned=is_pinned)

    def unload_lora_adapter(self, name: str) -> None:
        """Forgets an adapter. Requests that have begun go on with it.

        Raises:
            InvalidRequestError: the model was loaded without adapters.
            AdapterNotFoundError: there is no such adapter.
        """
        self._adapters.unload_adapter(name)

    def list_lora_adapters(self) -> list[AdapterInfo]:
        """The loaded adapters, by name; none where the model was loaded without."""
        manager: LoRAManager | None = self._loaded.model.lora_manager
        return [] if manager is None else manager.adapters()

    @property
    def _adapters(self) -> LoRAManager:
        manager: LoRAManager | None = self._loaded.model.lora_manager
        if manager is None:
            raise InvalidRequestError("the model was loaded without adapters", param="enable_lora")
        return manager
