"""Tool calls: how families write them, reading them as they come, and grammars that hold models to them."""

from puna.entrypoints.tool_calls.formats import FORMATS, ToolCallFormat, detect_format
from puna.entrypoints.tool_calls.message import MessageParser, message_delta

__all__ = ["FORMATS", "MessageParser", "ToolCallFormat", "detect_format", "message_delta"]
