"""A cache of facts about tokens, bounded by the size of the tokens."""

from collections import OrderedDict
from typing import Generic, TypeVar

_Fact = TypeVar("_Fact")


class TokenCache(Generic[_Fact]):
    """Keeps one fact for each token. The oldest token is removed first."""

    def __init__(self, max_size: int) -> None:
        """
        Args:
            max_size: maximum number of characters of all tokens together.
        """
        self._max_size, self._size = max_size, 0
        self._facts: OrderedDict[str, _Fact] = OrderedDict()

    @property
    def size(self) -> int:
        """Characters of all tokens together."""
        return self._size

    def get(self, token: str) -> _Fact | None:
        return self._facts.get(token)

    def put(self, token: str, fact: _Fact) -> None:
        if self._facts.pop(token, None) is None:
            self._size += len(token)
        self._facts[token] = fact
        while self._size > self._max_size:
            oldest, _ = self._facts.popitem(last=False)
            self._size -= len(oldest)

    def clear(self) -> None:
        self._facts.clear()
        self._size = 0
