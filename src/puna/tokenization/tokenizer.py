"""Text to token ids and back.

One `Tokenizer` for every source: a model directory or the metadata of a GGUF file. See docs/tokens.md.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path

from puna.errors import InvalidRequestError, UnsupportedModelError
from puna.tokenization.chat_template import ChatTemplate, TemplateSources
from puna.tokenization.definition import TokenizerDefinition
from puna.tokenization.directory_source import definition_from_directory, read_config
from puna.tokenization.encoder import LibraryEncoder
from puna.tokenization.gguf_source import definition_from_gguf
from puna.tokenization.pieces import Pieces


class Tokenizer:
    """Turns text into token ids and ids into text, as the model's own tokenizer does.

    Safe to use from several threads. Made by `load_tokenizer`.

    Attributes:
        definition: Where everything comes from.
        chat_template: How messages become a prompt; None when the model brings no template.

    Args:
        definition: The tokenizer as data.
        template_sources: Where the chat template may come from.

    Raises:
        UnsupportedModelError: The decoder or the chat template is not implemented.
    """

    def __init__(self, definition: TokenizerDefinition, template_sources: TemplateSources | None = None) -> None:
        self.definition = definition
        self.pieces = Pieces(definition)
        self._encoder = LibraryEncoder(definition)
        sources = template_sources or TemplateSources()
        self.chat_template: ChatTemplate | None = sources.select(self.special_tokens)

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return len(self.pieces)

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text, if there is one."""
        return self.definition.special_ids.get("bos")

    @property
    def eos_token_id(self) -> int | None:
        """The first of `eos_token_ids`."""
        return self.definition.end_ids[0] if self.definition.end_ids else None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generation: of generation_config.json, the tokenizer's own, and known ends of a turn."""
        return self.definition.end_ids

    @property
    def pad_token_id(self) -> int | None:
        """Id of the padding token, if there is one."""
        return self.definition.special_ids.get("pad")

    @property
    def unk_token_id(self) -> int | None:
        """Id for text that no other token covers, if there is one."""
        return self.definition.special_ids.get("unk")

    @cached_property
    def adds_bos(self) -> bool:
        """Whether `encode` puts BOS before a text when special tokens are wanted."""
        return self.bos_token_id is not None and self._encoder.encode("", add_special_tokens=True)[:1] == [
            self.bos_token_id
        ]

    @property
    def description(self) -> str:
        """One line for people: kind of model and pre-tokenizer."""
        return self.definition.label

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Texts of the named special tokens, as templates use them: `{"bos_token": "<s>", ...}`."""
        named = {role: self.id_to_token(token_id) for role, token_id in self.definition.special_ids.items()}
        return {f"{role}_token": text for role, text in named.items() if text is not None}

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """Ids of control tokens: what `skip_special_tokens` leaves out."""
        return frozenset(token.id for token in self.definition.added_tokens if token.special)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Special tokens that the text spells out are recognized. Where BOS would be added to a text that begins with
        it, it is not added again.

        Args:
            text: The text.
            add_special_tokens: Add BOS and EOS where the model's tokenizer adds them (plain prompts: yes; rendered chat
                templates: no, they contain them).

        Raises:
            InvalidRequestError: The text holds half of a surrogate pair, which is no character.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"the text holds U+{ord(text[error.start]):04X} at {error.start}, half of a surrogate pair",
                param="prompt",
            ) from error
        ids = self._encoder.encode(text, add_special_tokens=add_special_tokens)
        if add_special_tokens and self.adds_bos and ids[1:2] == [self.bos_token_id]:
            del ids[0]
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids: the UTF-8 text of their bytes, U+FFFD for bytes that are no text.

        Args:
            ids: Token ids; ids without a token contribute nothing.
            skip_special_tokens: Leave control tokens out.
        """
        return self.pieces.join(ids, skip_special_tokens=skip_special_tokens).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token contributes to a text."""
        return self.pieces.bytes_of(token_id)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of a token (with its stand-ins for spaces and bytes); None for an unused id."""
        tokens = self.definition.tokens
        return tokens[token_id] if 0 <= token_id < len(tokens) else None

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by the vocabulary's spelling; None when there is no such token."""
        for added in self.definition.added_tokens:
            if added.content == token:
                return added.id
        return self.definition.vocabulary.get(token)

    @property
    def is_prepared(self) -> bool:
        """Whether everything is built; see `prepare`."""
        return self._encoder.is_prepared

    def prepare(self) -> None:
        """Builds everything that is otherwise built at the first long text; for servers, before the first request."""
        self._encoder.prepare()


def load_tokenizer(
    source: str | Path | Mapping[str, object],
    *,
    chat_template: str | Path | None = None,
    name: str = "GGUF metadata",
) -> Tokenizer:
    """Loads the tokenizer of a model.

    Args:
        source: A model directory, or the metadata of a GGUF file.
        chat_template: Template that overrides the model's own: Jinja text, or the path of a file with it.
        name: What to call a GGUF file in messages.

    Raises:
        UnsupportedModelError: There is no tokenizer, or one of a kind that is not implemented.
        WeightsError: A file is damaged.
    """
    if isinstance(source, Mapping):
        return Tokenizer(
            definition_from_gguf(source, name), TemplateSources.from_gguf(source, name, override=chat_template)
        )
    directory = Path(source)
    if not directory.is_dir():
        raise UnsupportedModelError(
            "tokenizer source", str(source), supported="a model directory, or the metadata of a GGUF file"
        )
    config = read_config(directory)
    return Tokenizer(
        definition_from_directory(directory, config),
        TemplateSources.from_directory(directory, config.tokenizer, override=chat_template),
    )


def load_tokenizer_async(
    source: str | Path | Mapping[str, object],
    *,
    chat_template: str | Path | None = None,
    name: str = "GGUF metadata",
) -> Future[Tokenizer]:
    """`load_tokenizer` in a thread of its own, beside the loading of the weights.

    Returns:
        A future of the tokenizer; an error of `load_tokenizer` comes out of its `result()`.
    """
    future: Future[Tokenizer] = Future()

    def run() -> None:
        try:
            tokenizer = load_tokenizer(source, chat_template=chat_template, name=name)
            with contextlib.suppress(UnsupportedModelError):  # raised again when the template is used
                if tokenizer.chat_template is not None:
                    tokenizer.chat_template.prepare()
            future.set_result(tokenizer)
        except BaseException as error:  # handed over whole: the caller's thread decides
            future.set_exception(error)

    threading.Thread(target=run, name="puna-tokenizer", daemon=True).start()
    return future
