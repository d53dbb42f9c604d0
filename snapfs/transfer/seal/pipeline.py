"""Work done ahead of its one consumer: by several threads, in order, in bounded memory.

Invariants:
1. Results come out in the order of the steps, whatever order the threads finish in.
2. The steps taken from the source and not yet handed out weigh at most `window_bytes` (plus one step) and
   number at most `MOST_STEPS`; so memory does not grow with the work.
3. The source is advanced only by the consumer's thread: it may use what belongs to that thread.
4. After `close()` no thread runs a step and none will.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Step = TypeVar("Step")
Result = TypeVar("Result")
T = TypeVar("T")

MOST_STEPS = 256


class _Inline(Executor):
    """Runs each step at once in the calling thread: for tests that want the same order of events every time."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Pipeline(Generic[Step, Result]):
    """Iterate it for (step, result) pairs; `result` is None for a step that weighs nothing and is not run.

    `threads` 0: no threads, and no working ahead beyond what the window takes.
    """

    def __init__(
        self,
        steps: Iterator[Step],
        work: Callable[[Step], Result],
        weigh: Callable[[Step], int],
        *,
        threads: int,
        window_bytes: int,
    ) -> None:
        self._steps = steps
        self._work = work
        self._weigh = weigh
        self._window_bytes = window_bytes
        self._waiting: deque[tuple[Step, Future[Result] | None, int]] = deque()
        self._weight = 0
        self._pool: Executor = ThreadPoolExecutor(threads, thread_name_prefix="encode") if threads else _Inline()

    def __iter__(self) -> Iterator[tuple[Step, Result | None]]:
        return self

    def __next__(self) -> tuple[Step, Result | None]:
        self._fill()
        if not self._waiting:
            raise StopIteration
        step, future, weight = self._waiting.popleft()
        self._weight -= weight
        return step, None if future is None else future.result()

    def _fill(self) -> None:
        while self._weight < self._window_bytes and len(self._waiting) < MOST_STEPS:
            step = next(self._steps, None)
            if step is None:
                return
            weight = self._weigh(step)
            future = self._pool.submit(self._work, step) if weight else None
            self._waiting.append((step, future, weight))
            self._weight += weight

    def close(self) -> list[Step]:
        """Stop, wait for the steps that run, and return those that were taken and not handed out."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        left = [step for step, _, _ in self._waiting]
        self._waiting.clear()
        return left
