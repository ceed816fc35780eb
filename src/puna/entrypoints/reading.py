"""What can be read from prompts: logits, scores, hidden states, embeddings. `LLM` has these as its own methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from puna.entrypoints.answer import Answer
from puna.entrypoints.loop_driver import LoopDriver
from puna.entrypoints.outputs import ChoiceScore
from puna.entrypoints.preparation import AdapterNames, Preparation, Prompt, as_requests, spread_adapters
from puna.errors import InvalidRequestError
from puna.pipelines.prompt_reading import HiddenStateReader, LogitReader, LogprobReader, Pooling, PoolingReader
from puna.pipelines.prompt_rows import PromptReader
from puna.pipelines.sampling_params import SamplingParams

__all__ = ["ReadsPrompts"]

_T = TypeVar("_T", bound=PromptReader)
_GREEDY: Final = SamplingParams(temperature=0)
_SCORED_TOGETHER: Final = 32
_WINDOWS_TOGETHER: Final = 8


class ReadsPrompts(ABC):
    """What an `LLM` does with prompts besides continuing them. Prompts have the forms that `LLM.generate` takes."""

    max_model_len: int
    _driver: LoopDriver

    @property
    @abstractmethod
    def _open(self) -> Preparation:
        """Makes contexts of prompts; an error if the model was closed."""

    @property
    @abstractmethod
    def model(self) -> Any:
        """The loaded pipeline model."""

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling = "mean",
        normalize: bool = True,
        layer: int = -1,
        adapter: AdapterNames = None,
    ) -> npt.NDArray[np.float32]:
        """One vector per prompt, float32 `[n, H]`.

        Args:
            prompts: As of `generate`.
            pooling: `mean` over its tokens, its `last` token, or `cls`: its first.
            normalize: Scale each vector to length 1.
            layer: Whose outputs, as in `encode`.
            adapter: As of `generate`.

        Raises:
            InvalidRequestError: there is no such pooling or layer, or a prompt does not fit.
        """
        place = self._layer(layer)
        readers = self._read_prompts(prompts, lambda: PoolingReader(pooling, place), adapter)
        vectors = [reader.vector(normalize) for reader in readers]
        return np.stack(vectors) if vectors else np.zeros((0, self.model.config.hidden_size), np.float32)

    def encode(
        self, prompts: Prompt | Sequence[Prompt], *, layers: Sequence[int] = (-1,), adapter: AdapterNames = None
    ) -> list[dict[int, npt.NDArray[np.float32]]]:
        """The hidden states of prompts.

        Args:
            prompts: As of `generate`.
            layers: Which ones: 0 stands for the embeddings, 1 to the number of layers for what goes out of each; the
                last one's is taken behind the final norm. Negative numbers count from the end.
            adapter: As of `generate`.

        Returns:
            For each prompt layer -> float32 `[T, H]`, by the numbers that were given.

        Raises:
            InvalidRequestError: there is no such layer, or a prompt does not fit.
        """
        places = {layer: self._layer(layer) for layer in layers}
        readers = self._read_prompts(prompts, lambda: HiddenStateReader(sorted(set(places.values()))), adapter)
        return [
            {layer: np.concatenate(reader.chunks[place]) for layer, place in places.items()} for reader in readers
        ]

    def logits(
        self, token_ids: Sequence[Sequence[int]], *, adapter: AdapterNames = None
    ) -> list[npt.NDArray[np.float32]]:
        """The model's logits at every position, float32 `[T, V]` for each prompt.

        Args:
            token_ids: Prompts as token ids.
            adapter: As of `generate`.

        Raises:
            InvalidRequestError: a prompt is empty or does not fit, or a token is outside the vocabulary.
        """
        readers = [LogitReader() for _ in token_ids]
        names = spread_adapters(adapter, len(readers))
        self._read([self._open.reading(*each) for each in zip(token_ids, readers, names, strict=True)])
        return [np.concatenate(reader.chunks) for reader in readers]

    def score(
        self, prompt: Prompt, choices: Sequence[Prompt], *, adapter: str | None = None
    ) -> list[ChoiceScore]:
        """How likely continuations of a prompt are. What they share is computed once.

        Args:
            prompt: Text or token ids.
            choices: Continuations; texts are tokenized by themselves, without special tokens.
            adapter: The name of an adapter; None: the model itself.

        Raises:
            InvalidRequestError: there is no choice, one is empty, or prompt and choice do not fit together.
        """
        (request,) = as_requests(prompt, _GREEDY)
        begin = self._open.encode(request)[1]
        texts: list[str | None] = []
        endings: list[tuple[int, ...]] = []
        for choice in as_requests(list(choices), _GREEDY):
            texts.append(choice.text)
            ids = choice.token_ids or ()
            if choice.text is not None:
                ids = self._open.tokenizer.encode(choice.text, add_special_tokens=False)
            endings.append(tuple(int(token) for token in ids))
        if not endings or not all(endings):
            raise InvalidRequestError("must be texts of at least one token", param="choices")
        scored = self._score_endings(begin, endings, adapter)
        return [
            ChoiceScore(
                text=text,
                token_ids=ids,
                token_logprobs=tuple(record.token_log_probabilities[0] for record in reader.records),
                is_greedy=all(r.ranks[0][token] == 1 for r, token in zip(reader.records, ids, strict=True)),
            )
            for text, ids, reader in zip(texts, endings, scored, strict=True)
        ]

    def token_logprobs(
        self,
        text: Prompt,
        *,
        window: int | None = None,
        stride: int | None = None,
        progress: bool | None = False,
        adapter: str | None = None,
    ) -> npt.NDArray[np.float64]:
        """The log-probability of each token of a text but the first, given those before it: float64 `[T - 1]`.

        A text that is longer than the window is read in windows; each token after the first window is scored once,
        with at least `window - stride` tokens before it.

        Args:
            text: Text or token ids, at least two tokens.
            window: Tokens of a window; None: `max_model_len`.
            stride: Tokens that a window goes on by; None: half a window.
            progress: Show a bar; None: if standard error is a terminal and there are several windows.
            adapter: The name of an adapter; None: the model itself.

        Raises:
            InvalidRequestError: the text has fewer than two tokens, or a number is out of range.
        """
        from puna.entrypoints.console import progress_bar

        (request,) = as_requests(text, _GREEDY)
        ids = self._open.encode(request)[1]
        width = self.max_model_len if window is None else window
        step = max(1, width // 2) if stride is None else stride
        if not 2 <= width <= self.max_model_len:
            raise InvalidRequestError(f"must be from 2 to {self.max_model_len}, got {width}", param="window")
        if not 1 <= step < width:
            raise InvalidRequestError(f"must be from 1 to {width - 1}, got {step}", param="stride")
        if len(ids) < 2:
            raise InvalidRequestError(f"must have at least 2 tokens, it has {len(ids)}", param="text")
        windows = []  # from, to, the first token that is scored; the text's first one has nothing before it
        scored = 1
        while scored < len(ids):
            begin = 0 if scored == 1 else max(0, min(scored + step, len(ids)) - width)
            end = min(begin + width, len(ids))
            windows.append((begin, end, scored))
            scored = end
        values: list[float] = []
        with progress_bar("reading", len(windows), progress) as tell:
            # A few at a time: what readers keep of a long text would not fit.
            for first in range(0, len(windows), _WINDOWS_TOGETHER):
                some = windows[first : first + _WINDOWS_TOGETHER]
                readers = [self._logprob_reader(ids[begin:end], target - begin) for begin, end, target in some]
                self._read([
                    self._open.reading(ids[begin:end], reader, adapter)
                    for (begin, end, _), reader in zip(some, readers, strict=True)
                ])
                values += [record.token_log_probabilities[0] for reader in readers for record in reader.records]
                for _ in some:
                    tell()
        return np.array(values)

    def perplexity(
        self, text: Prompt, *, window: int | None = None, stride: int | None = None, adapter: str | None = None
    ) -> float:
        """`exp` of the mean negative log-probability per token of a text; arguments as of `token_logprobs`."""
        return float(np.exp(-np.mean(self.token_logprobs(text, window=window, stride=stride, adapter=adapter))))

    def _layer(self, layer: int) -> int:
        """A layer as readers number them: from 0, -1 for the embeddings, their number for the final norm's output."""
        count = int(self.model.config.num_hidden_layers)
        number = layer + count + 1 if layer < 0 else layer
        if not 0 <= number <= count:
            raise InvalidRequestError(f"must be from 0 to {count} (or -{count + 1} to -1), got {layer}", param="layer")
        return number if number == count else number - 1

    def _logprob_reader(self, ids: Sequence[int], first_token: int) -> LogprobReader:
        tokens = np.array(ids, dtype=np.int64)
        return LogprobReader(tokens, first_token=first_token)

    def _score_endings(
        self, begin: list[int], endings: Sequence[tuple[int, ...]], adapter: str | None
    ) -> list[LogprobReader]:
        readers = [self._logprob_reader([*begin, *ending], len(begin)) for ending in endings]
        contexts = [
            self._open.reading([*begin, *ending], reader, adapter)
            for ending, reader in zip(endings, readers, strict=True)
        ]
        if len(contexts) == 1 or len(begin) == 1:
            self._read(contexts)
            return readers
        # The first choice's token is foretold by the prompt's last one, which therefore each of them reads.
        root = Answer(self._open.root(begin[:-1], adapter), None, ())
        with self._driver.running([root]):
            self._driver.advance(root)
            for first in range(0, len(contexts), _SCORED_TOGETHER):
                self._read(contexts[first : first + _SCORED_TOGETHER], root)
        return readers

    def _read_prompts(
        self, prompts: Prompt | Sequence[Prompt], make: Callable[[], _T], adapter: AdapterNames
    ) -> list[_T]:
        requests = as_requests(prompts, _GREEDY, adapter)
        readers = [make() for _ in requests]
        self._read([
            self._open.reading(self._open.encode(request)[1], reader, request.adapter)
            for request, reader in zip(requests, readers, strict=True)
        ])
        return readers

    def _read(self, contexts: Sequence[Any], parent: Answer | None = None) -> None:
        """Runs contexts whose readers are what is wanted of them."""
        answers = [Answer(context, None, ()) for context in contexts]
        with self._driver.running(answers, parent):
            for answer in answers:
                self._driver.finish(answer)
                error = answer.output().error
                if error is not None:
                    raise error
