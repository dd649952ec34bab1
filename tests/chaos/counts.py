"""What a part of the chaos counts, and which counts must be zero."""

from __future__ import annotations


class Counts:
    """Named numbers, in the order of their first mention; `must_be_zero` makes a promise of one."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}
        self._promised: set[str] = set()

    def add(self, name: str, value: float = 1) -> None:
        self._values[name] = self._values.get(name, 0) + value

    def must_be_zero(self, name: str, value: float) -> None:
        """Adds to a count that stands for something lost, left or repeated."""
        self._promised.add(name)
        self.add(name, value)

    @property
    def broken(self) -> list[str]:
        return [name for name in self._promised if self._values[name]]

    def text(self) -> str:
        width = max(map(len, self._values), default=0)
        lines = []
        for name, value in self._values.items():
            promise = "" if name not in self._promised else "   must be 0" if value else "   as promised"
            lines.append(f"{name:<{width}}  {value:>8g}{promise}")
        return "\n".join(lines)
