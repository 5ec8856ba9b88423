"""Settings out of a file's own configuration, which may hold anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from ..errors import ConfigError
from .checkpoint import Checkpoint

ConfigT = TypeVar("ConfigT")


def number(checkpoint: Checkpoint, given: Mapping[str, Any], *names: str, default: float) -> float:
    """A positive number under the first of `names` that the configuration has.

    Raises:
        ConfigError: anything else is there.
    """
    value, name = _first(given, names)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(
            f"{checkpoint.name} gives {value!r:.60} as {name}, expected a positive number; "
            f"correct {name} in the file's config metadata"
        )
    return float(value)


def whole(checkpoint: Checkpoint, given: Mapping[str, Any], *names: str, default: int, largest: int = 2**20) -> int:
    """A whole number from 1 to `largest` under the first of `names` that the configuration has.

    Raises:
        ConfigError: anything else is there.
    """
    value, name = _first(given, names)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise ConfigError(
            f"{checkpoint.name} gives {value!r:.60} as {name}, expected a whole number from 1 to {largest}; "
            f"correct {name} in the file's config metadata"
        )
    return value


def choice(checkpoint: Checkpoint, given: Mapping[str, Any], name: str, options: Collection[str], default: str) -> str:
    """One of `options` under `name`.

    Raises:
        ConfigError: anything else is there.
    """
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or value not in options:
        raise ConfigError(
            f"{checkpoint.name} gives {value!r:.60} as {name}, expected one of {', '.join(options)}; "
            f"correct {name} in the file's config metadata"
        )
    return value


def configured(checkpoint: Checkpoint, make: Callable[[], ConfigT]) -> ConfigT:
    """What `make` gives, a configuration of sizes that were read before.

    Raises:
        ConfigError: the sizes contradict each other; names the file.
    """
    try:
        return make()
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.name}: {error}") from error


def _first(given: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Any, str]:
    """A value and its name; None without any."""
    return next(((given[name], name) for name in names if given.get(name) is not None), (None, names[0]))
