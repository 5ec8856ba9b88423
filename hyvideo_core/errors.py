"""Every error that a user can meet, as one tree. Messages say what came, what was expected and what to do.

HyVideoError
|-- ShapeError            sizes that the model cannot take
|-- OptionError           a setting outside its range
|-- ConfigError           a configuration that contradicts itself
|-- ConditioningError     text states that do not fit the model
|-- CheckpointError       a weight file that cannot be used
|   |-- CorruptFileError  truncated, or not the format that its name says
|   |-- WrongModelError   a sound file of something else
|   `-- UntrustedFileError  opening it could execute code
|-- TokenizerError        a missing or mismatching tokenizer
|-- NonFiniteError        NaN or infinity in a result
`-- GraphError            a workflow that cannot be run
"""

from __future__ import annotations


class HyVideoError(Exception):
    """Anything that this pack refuses on purpose."""


class ShapeError(HyVideoError, ValueError):
    """A size that the model cannot take."""


class OptionError(HyVideoError, ValueError):
    """A setting outside its range."""


class ConfigError(HyVideoError, ValueError):
    """A model configuration that contradicts itself."""


class ConditioningError(HyVideoError, ValueError):
    """Text states that do not fit the model."""


class CheckpointError(HyVideoError):
    """A weight file that cannot be used."""


class CorruptFileError(CheckpointError):
    """A file that is truncated, or not of the format that its name says."""


class WrongModelError(CheckpointError):
    """A sound file that holds something else than what was asked for."""


class UntrustedFileError(CheckpointError):
    """A file, or a path, that could execute code or reach outside its folder."""


class TokenizerError(HyVideoError):
    """A tokenizer that is missing or does not fit its encoder."""


class NonFiniteError(HyVideoError, ArithmeticError):
    """NaN or infinity in a result."""


class GraphError(HyVideoError):
    """A workflow that cannot be run."""
