"""What a person types into a chat: entries of one line or several, from a terminal or a pipe."""

from __future__ import annotations

import contextlib
import sys
from typing import Final

from puna.errors import InvalidRequestError

__all__ = ["ChatInput"]

_FENCE: Final = '"""'
_PROMPT: Final = "> "
_CONTINUED: Final = ". "


class ChatInput:
    """Reads entries.

    A line that ends with a backslash goes on with the next one; a line that begins with three double quotes goes on
    until three end a line. What is pasted into a terminal is one entry, whatever lines it has.

    Attributes:
        is_terminal: Whether a person types.
    """

    def __init__(self) -> None:
        self.is_terminal = sys.stdin.isatty()
        if self.is_terminal:
            # Importing it gives `input` editing and history; without it lines are read all the same.
            with contextlib.suppress(ImportError):
                import readline

                readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self) -> str:
        """The next entry.

        Raises:
            EOFError: there is none.
            KeyboardInterrupt: it was given up.
            InvalidRequestError: it is not UTF-8.
        """
        line = self._line(_PROMPT)
        if line.lstrip().startswith(_FENCE):
            return self._fenced(line.lstrip().removeprefix(_FENCE))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            try:
                lines.append(self._line(_CONTINUED))
            except EOFError:
                break
        return "\n".join(lines)

    def _fenced(self, line: str) -> str:
        lines = [line]
        while not lines[-1].rstrip().endswith(_FENCE):
            try:
                lines.append(self._line(_CONTINUED))
            except EOFError:
                return "\n".join(lines)
        lines[-1] = lines[-1].rstrip().removesuffix(_FENCE)
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str:
        if self.is_terminal:
            return input(prompt)
        data = sys.stdin.buffer.readline()
        if not data:
            raise EOFError
        try:
            return data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"standard input is not UTF-8 (byte {error.start} of a line)") from error
