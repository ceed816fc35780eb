"""Compiles grammars in a process of its own, where they may take too long, take too much memory, or crash.

A script that imports nothing of Puna. Its argument is JSON: the vocabulary's size, its control tokens and the limits.
Then each line is a grammar, as a text in JSON, and is answered by a line: what is wrong with it, or an empty text.
"""

import json
import resource
import signal
import sys
from typing import Any


def main() -> None:
    """Answers until there is nothing more to read."""
    settings = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (settings["memory"], settings["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    letters: Any = Letters(settings["size"], settings["control"])
    tokenizer = LLTokenizer(letters, slices=[])
    limits = LLParserLimits(**settings["limits"])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin.buffer:
        # Counts the processor's time, and ends the process when it is up.
        signal.setitimer(signal.ITIMER_PROF, settings["seconds"])
        matcher = LLMatcher(tokenizer, json.loads(line), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(matcher.get_error() if matcher.is_error() else ""), flush=True)


class Letters:
    """The 256 bytes, and a model's control tokens under their own ids."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, size: int, control: dict[str, str]) -> None:
        self.tokens = [b""] * max(size, 257)
        for token, text in control.items():
            self.tokens[int(token)] = b"\xff" + text.encode()
        free = [token for token, data in enumerate(self.tokens) if not data][:256]
        for byte, place in enumerate(free):
            self.tokens[place] = bytes([byte])
        self.special_token_ids = [int(token) for token in control]
        self.eos_token_id = self.special_token_ids[0]
        self._token_of = dict(enumerate(free))

    def __call__(self, text: Any) -> list[int]:
        return [self._token_of[byte] for byte in (text.encode() if isinstance(text, str) else text)]


if __name__ == "__main__":
    main()
