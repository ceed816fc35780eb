"""A lock that serves threads in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """A lock for threads that take it again and again.

    `threading.Lock` goes to whoever asks first after it was released, which is nearly always the thread that released
    it. Here the thread that waits longest is next.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_held = False
        self._waiting: deque[threading.Lock] = deque()  # one gate per thread; opening it hands the lock over

    def __enter__(self) -> None:
        with self._guard:
            if not self._is_held:
                self._is_held = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()
        except BaseException:  # interrupted: the lock must not go to a thread that waits no longer
            with self._guard:
                is_waiting = gate in self._waiting
                if is_waiting:
                    self._waiting.remove(gate)
            if not is_waiting:
                self._release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_held = False
