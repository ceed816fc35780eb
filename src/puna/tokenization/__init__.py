"""Text ↔ token ids, chat templates, and text from streamed ids. A leaf: imports nothing of Puna but its errors."""

from puna.tokenization.chat_template import ChatTemplate, TemplateSources
from puna.tokenization.detokenizer import IncrementalDetokenizer, StopResult, StopStringChecker
from puna.tokenization.tokenizer import Tokenizer, load_tokenizer, load_tokenizer_async

__all__ = [
    "ChatTemplate",
    "IncrementalDetokenizer",
    "StopResult",
    "StopStringChecker",
    "TemplateSources",
    "Tokenizer",
    "load_tokenizer",
    "load_tokenizer_async",
]
