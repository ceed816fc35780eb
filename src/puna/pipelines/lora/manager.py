"""`LoRAManager`: which adapters are loaded, which of them are in memory, and which are in the slots of steps."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from puna.engine.adapters import AdapterSlots
from puna.errors import AdapterError, AdapterExistsError, AdapterNotFoundError, InvalidRequestError
from puna.pipelines.lib.lora_config import LoRAConfig
from puna.pipelines.lora.adapter import LoRAAdapter, read_adapter
from puna.pipelines.lora.products import ModelProducts
from puna.pipelines.lora.routing import BASE, AdapterRouting

__all__ = ["AdapterInfo", "LoRAManager"]


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter that is loaded.

    Attributes:
        name: What requests call it.
        path: Where it was read from.
        rank: The largest rank of its updates.
        nbytes: Bytes of its matrices.
        content_id: Its identity.
        is_pinned: Whether it is never dropped from memory.
        is_resident: Whether it is in memory; if not, the next request that names it reads it again.
    """

    name: str
    path: Path
    rank: int
    nbytes: int
    content_id: str
    is_pinned: bool
    is_resident: bool


@dataclass(slots=True)
class _Entry:
    info: AdapterInfo
    adapter: LoRAAdapter | None
    is_pinned: bool

    def report(self) -> AdapterInfo:
        return replace(self.info, is_pinned=self.is_pinned, is_resident=self.adapter is not None)


class LoRAManager:
    """The adapters of a model.

    A loaded adapter has a name. Its matrices are in memory, up to `lora_memory` bytes of all of them: then those that
    were not asked for longest go, and are read again when they are. Requests hold the adapter that they began with,
    whatever becomes of its name. A step names adapters by slots; a slot is given anew when no request of the step needs
    what is in it, the one that was used longest ago first.

    Loading, unloading and looking up are safe from any thread. `route` belongs to the thread that takes steps.

    Args:
        config: Its options; the adapters of `lora_paths` are loaded at once.
        products: What adapters may update.

    Raises:
        AdapterError: an adapter of `lora_paths` cannot be loaded.

    Attributes:
        max_rank: The largest rank that is taken.
        memory: Most bytes of adapters in memory, or None.
        slots: What programs find adapters by.
    """

    def __init__(self, config: LoRAConfig, products: ModelProducts) -> None:
        self.max_rank = config.max_lora_rank
        self.slots = AdapterSlots(config.max_num_loras)
        self._products = products
        self.memory = config.lora_memory
        self._lock = threading.Lock()  # of the entries
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # who was asked for last comes last
        self._slot_of: OrderedDict[str, int] = OrderedDict()  # by content; who was used last comes last
        for entry in config.lora_paths:
            self.load_adapter(*LoRAConfig.split(entry))

    def load_adapter(
        self, name: str, path: str | Path, *, load_inplace: bool = False, is_pinned: bool = False
    ) -> AdapterInfo:
        """Loads an adapter. The same name with the same content is loaded already.

        Args:
            name: What requests will call it.
            path: A directory in PEFT's layout, or a GGUF file.
            load_inplace: Let the name stand for this adapter from now on, whatever it stood for.
            is_pinned: Never drop it from memory.

        Raises:
            AdapterError: it cannot be read, does not fit the model, or not into `lora_memory`.
            AdapterExistsError: the name stands for another one.
        """
        if not name or len(name) > 256 or not name.isprintable():
            raise InvalidRequestError(f"{name!r} is no name for an adapter", param="lora_name")
        adapter = read_adapter(name, Path(path), self._products, self.max_rank)
        with self._lock:
            known = self._entries.get(name)
            if known is not None and known.info.content_id != adapter.content_id and not load_inplace:
                raise AdapterExistsError(name, str(known.info.path))
            self._make_room(adapter, but=name)
            self._entries[name] = _Entry(_info(adapter, is_pinned), adapter, is_pinned)
            self._entries.move_to_end(name)
            return self._entries[name].info

    def unload_adapter(self, name: str) -> None:
        """Forgets a name. Requests that began with the adapter go on with it.

        Raises:
            AdapterNotFoundError: there is no such adapter.
        """
        with self._lock:
            if self._entries.pop(name, None) is None:
                raise AdapterNotFoundError(name, choices=list(self._entries))

    def pin_adapter(self, name: str, is_pinned: bool = True) -> None:
        """Never drop an adapter from memory, or do so again.

        Raises:
            AdapterNotFoundError: there is no such adapter.
        """
        self.find(name)
        with self._lock:
            if name in self._entries:
                self._entries[name].is_pinned = is_pinned

    def find(self, name: str) -> LoRAAdapter:
        """The adapter of this name, which from now on counts as used last. It may have to be read again.

        Raises:
            AdapterNotFoundError: there is no such adapter.
            AdapterError: it has to be read again, and is not what it was.
        """
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                raise AdapterNotFoundError(name, choices=list(self._entries))
            self._entries.move_to_end(name)
            if entry.adapter is not None:
                return entry.adapter
        adapter = read_adapter(name, entry.info.path, self._products, self.max_rank)
        if adapter.content_id != entry.info.content_id:
            raise AdapterError(name, f"{entry.info.path} changed since it was loaded; load it again")
        with self._lock:
            if self._entries.get(name) is entry:
                self._make_room(adapter, but=name)
                entry.adapter = adapter
        return adapter

    def adapters(self) -> list[AdapterInfo]:
        """What is loaded, by name."""
        with self._lock:
            return [self._entries[name].report() for name in sorted(self._entries)]

    @property
    def resident_bytes(self) -> int:
        """Bytes of the loaded adapters that are in memory."""
        with self._lock:
            return self._resident_bytes(but=None)

    def route(self, adapters: Sequence[LoRAAdapter | None]) -> AdapterRouting:
        """Gives each adapter of a step a slot.

        Args:
            adapters: Those of the step's requests, in order; None: none.

        Raises:
            ValueError: more adapters than slots, or a request with one after a request without.
        """
        needed = {adapter.content_id: adapter for adapter in adapters if adapter is not None}
        if len(needed) > len(self.slots):
            raise ValueError(f"{len(needed)} adapters in a step, max_num_loras is {len(self.slots)}")
        self._let_go(needed.keys())
        for content, adapter in needed.items():
            if content not in self._slot_of:
                self._slot_of[content] = self._free_slot(needed.keys())
                self.slots[self._slot_of[content]] = adapter.weights
            self._slot_of.move_to_end(content)
        return AdapterRouting.of(
            [BASE if adapter is None else self._slot_of[adapter.content_id] for adapter in adapters],
            [0 if adapter is None else adapter.rank for adapter in adapters],
        )

    def _let_go(self, needed: Collection[str]) -> None:
        """Empties the slots of adapters that are loaded no more, and that no request of the step has."""
        with self._lock:
            loaded = {entry.info.content_id for entry in self._entries.values() if entry.adapter is not None}
        for content in [c for c in self._slot_of if c not in loaded and c not in needed]:
            self.slots[self._slot_of.pop(content)] = None

    def _free_slot(self, needed: Collection[str]) -> int:
        taken = set(self._slot_of.values())
        free = [slot for slot in range(len(self.slots)) if slot not in taken]
        if free:
            return free[0]
        oldest = next(content for content in self._slot_of if content not in needed)
        return self._slot_of.pop(oldest)

    def _resident_bytes(self, but: str | None) -> int:
        some = (entry.adapter for name, entry in self._entries.items() if name != but)
        return sum(adapter.nbytes for adapter in some if adapter is not None)

    def _make_room(self, adapter: LoRAAdapter, but: str) -> None:
        """Drops adapters from memory until one more fits, those first that were not asked for longest."""
        if self.memory is None:
            return
        excess = self._resident_bytes(but) + adapter.nbytes - self.memory
        candidates = [
            entry
            for name, entry in self._entries.items()
            if name != but and entry.adapter is not None and not entry.is_pinned
        ]
        if excess > sum(entry.info.nbytes for entry in candidates):
            message = f"needs {adapter.nbytes} bytes, lora_memory ({self.memory}) has no room beside what is pinned"
            raise AdapterError(adapter.name, message)
        for entry in candidates:
            if excess <= 0:
                return
            excess -= entry.info.nbytes
            entry.adapter = None


def _info(adapter: LoRAAdapter, is_pinned: bool) -> AdapterInfo:
    return AdapterInfo(
        adapter.name, adapter.path, adapter.rank, adapter.nbytes, adapter.content_id, is_pinned, is_resident=True
    )
