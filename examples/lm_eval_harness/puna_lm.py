"""`PunaLM`: a `puna.LLM` as a model of EleutherAI's lm-eval-harness (PyPI `lm-eval`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from puna import LLM, SamplingParams

_CONTEXTS_TOGETHER = 16
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


class PunaLM(TemplateLM):
    """Answers the harness's three kinds of requests.

    Continuations of one context are scored together: the context is computed once. Several contexts are scored at the
    same time, from threads; an `LLM` puts what they ask for into the same steps.

    Args:
        llm: The model. A checkpoint in full precision: `dtype="float32", kv_cache_dtype="float32"`.
        add_bos_token: Whether texts begin with the tokenizer's special tokens. As in the harness's own `hf` model they
            do not, unless this says so.
        max_gen_toks: Tokens of an answer where the task states no limit.
    """

    backend = "causal"

    def __init__(self, llm: LLM, *, add_bos_token: bool = False, max_gen_toks: int = 256) -> None:
        super().__init__()
        self.llm = llm
        self.add_bos_token = add_bos_token
        self.max_gen_toks = max_gen_toks

    @property
    def max_length(self) -> int:
        """Most tokens that are read: with the one that they foretell they fill the model's context."""
        return self.llm.max_model_len - 1

    @property
    def eot_token_id(self) -> int:
        """What stands before a text where the tokenizer has no beginning-of-sequence token."""
        return int(min(self.llm.tokenizer.eos_token_ids))

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text, as its first token is foretold too."""
        bos = self.llm.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """The harness keeps prompts by this name."""
        return self.llm.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `apply_chat_template` uses."""
        return None if chat_template is False else self.llm.tokenizer.chat_template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the prompt that the model was trained on."""
        return self.llm.render(chat_history, add_generation_prompt=add_generation_prompt).text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> list[int]:
        """Token ids of a text."""
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        return self.llm.tokenize(string, add_special_tokens=special)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy decoding would have written it."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        endings = []
        for index, (_texts, context, continuation) in enumerate(requests):
            ending = continuation[-self.max_length :]
            room = self.llm.max_model_len - len(ending)  # of a context that is too long its end is kept
            endings.append(ending)
            groups[tuple(context[-room:])].append(index)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)

        def score(context: tuple[int, ...], members: list[int]) -> None:
            scores = self.llm.score(list(context), [endings[index] for index in members])
            for index, found in zip(members, scores, strict=True):
                results[index] = (found.logprob, found.is_greedy)

        with ThreadPoolExecutor(_CONTEXTS_TOGETHER) as pool:
            for done in [pool.submit(score, *group) for group in groups.items()]:
                done.result()
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each token once, in windows that are as long as the model allows."""

        def read(instance: Instance) -> float:
            ids = [self.prefix_token_id, *self.tok_encode(instance.args[0])]
            if len(ids) == 1:
                return 0.0
            window = self.llm.max_model_len
            return float(self.llm.token_logprobs(ids, window=window, stride=window - 1).sum())

        with ThreadPoolExecutor(_CONTEXTS_TOGETHER) as pool:
            return list(pool.map(read, requests))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, each up to the first of its task's stop strings."""
        prompts, params = [], []
        for instance in requests:
            context, stated = instance.args
            values = normalize_gen_kwargs(stated, self.max_gen_toks)
            most = values.pop("max_gen_toks")
            stop = [text for text in values.pop("until") if text]
            values.pop("do_sample", None)  # the temperature is 0 where it was false
            unknown = sorted(values.keys() - set(_SAMPLING))
            if unknown:
                raise ValueError(f"the task states {', '.join(unknown)}, which PunaLM does not know")
            prompts.append(self.tok_encode(context)[-(self.max_length - most) :])
            params.append(SamplingParams(max_tokens=most, stop=stop or None, **values))
        outputs = self.llm.generate(prompts, params, progress=False if disable_tqdm else None)
        for output in outputs:
            if output.error is not None:
                raise output.error
        return [output.outputs[0].text for output in outputs]
