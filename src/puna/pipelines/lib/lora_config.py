"""`LoRAConfig`: options of low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass, field

from puna.errors import InvalidRequestError

__all__ = ["LoRAConfig"]


@dataclass(kw_only=True)
class LoRAConfig:
    """Options of low-rank adapters.

    Attributes:
        enable_lora: Whether adapters can be used at all. While it is False the other options have no effect.
        lora_paths: Adapters to load at start, `path` or `name=path`.
        max_lora_rank: The largest rank that an adapter may have.
        max_num_loras: How many adapters can be in use at once.
        lora_memory: Most bytes of adapters in memory; those that were not asked for longest are read again when they
            are needed. None: all that are loaded.

    Raises:
        InvalidRequestError: a number is below 1, an entry of `lora_paths` is empty, or two have one name.
    """

    enable_lora: bool = False
    lora_paths: list[str] = field(default_factory=list)
    max_lora_rank: int = 16
    max_num_loras: int = 1
    lora_memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_lora_rank", "max_num_loras"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"must be at least 1, got {getattr(self, name)}", param=name)
        if self.lora_memory is not None and self.lora_memory < 1:
            raise InvalidRequestError(f"must be at least 1, got {self.lora_memory}", param="lora_memory")
        names: set[str] = set()
        for entry in self.lora_paths:
            name, path = self.split(entry)
            if not name or not path:
                raise InvalidRequestError(f"{entry!r} is not `path` or `name=path`", param="lora_paths")
            if name in names:
                raise InvalidRequestError(f"two adapters have the name {name!r}", param="lora_paths")
            names.add(name)

    @staticmethod
    def split(entry: str) -> tuple[str, str]:
        """Name and path of an entry of `lora_paths`; an entry without a name is named by its path."""
        name, equals, path = entry.partition("=")
        return (name, path) if equals else (entry, entry)
