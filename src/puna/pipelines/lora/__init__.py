"""Low-rank adapters: files, what is loaded, which rows of a step they are for."""

from puna.pipelines.lora.adapter import LoRAAdapter, read_adapter, read_updates
from puna.pipelines.lora.manager import AdapterInfo, LoRAManager
from puna.pipelines.lora.products import ModelProducts
from puna.pipelines.lora.routing import AdapterRouting

__all__ = [
    "AdapterInfo",
    "AdapterRouting",
    "LoRAAdapter",
    "LoRAManager",
    "ModelProducts",
    "read_adapter",
    "read_updates",
]
