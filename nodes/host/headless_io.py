"""The part of ComfyUI's V3 `io` that our nodes use, without ComfyUI.

Accepts exactly what the oldest supported host accepts, plus the later Schema fields (which the ComfyUI side drops
where the host does not know them). tests/host compares every node's description between this and the real one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

__all__ = [
    "Boolean",
    "Clip",
    "Combo",
    "ComfyNode",
    "Conditioning",
    "Custom",
    "Float",
    "Hidden",
    "Image",
    "Int",
    "Latent",
    "Mask",
    "Model",
    "NodeOutput",
    "NumberDisplay",
    "Sampler",
    "Schema",
    "Sigmas",
    "String",
    "Vae",
    "Video",
]

# keyword arguments whose name in the node description differs
_SPELLINGS = {
    "display_mode": "display",
    "dynamic_prompts": "dynamicPrompts",
    "force_input": "forceInput",
    "raw_link": "rawLink",
}
_SOCKET_OPTIONS = frozenset({"display_name", "tooltip", "lazy", "raw_link"})
_WIDGET_OPTIONS = _SOCKET_OPTIONS | {"default", "socketless", "force_input"}


class NumberDisplay(str, Enum):
    """How a number widget looks."""

    number = "number"
    slider = "slider"


class Hidden(str, Enum):
    """What a node may ask to be told about its own run."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"


@dataclass(frozen=True)
class InputSocket:
    """One input of a node; `options` as the node description spells them."""

    id: str
    io_type: str
    options: dict[str, Any]
    optional: bool = False


@dataclass(frozen=True)
class OutputSocket:
    """One output of a node."""

    io_type: str
    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False


class SocketType:
    """A type of socket: makes the inputs and outputs that carry it.

    Args:
        io_type: the type's name, as the host compares it.
        accepted: the keyword arguments that its inputs take.
        preset: options that the host writes even where the node does not.
    """

    def __init__(self, io_type: str, accepted: frozenset[str] = _SOCKET_OPTIONS, **preset: Any) -> None:
        self.io_type = io_type
        self._accepted = accepted
        self._preset = preset

    def Input(  # noqa: N802 (the host's spelling)
        self,
        id: str,  # noqa: A002 (the host's spelling)
        *,
        optional: bool = False,
        extra_dict: dict[str, Any] | None = None,
        **options: Any,
    ) -> InputSocket:
        """An input; keyword arguments as in the host, None meaning absent.

        Raises:
            TypeError: a keyword argument that the oldest supported host does not know.
        """
        if unknown := options.keys() - self._accepted:
            raise TypeError(f"{self.io_type} input {id!r}: unknown arguments {sorted(unknown)}; use extra_dict")
        merged = self._preset | {_SPELLINGS.get(name, name): _plain(value) for name, value in options.items()}
        merged |= extra_dict or {}
        return InputSocket(id, self.io_type, {k: v for k, v in merged.items() if v is not None}, optional)

    def Output(  # noqa: N802 (the host's spelling)
        self,
        id: str | None = None,  # noqa: A002 (the host's spelling)
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ) -> OutputSocket:
        """An output; without a display name it is called by its id, else by its type."""
        return OutputSocket(self.io_type, id, display_name or id, tooltip, is_output_list)


def _plain(value: Any) -> Any:
    """An enum class as the list of its values, an enum member as its value, anything else as it is."""
    if isinstance(value, type) and issubclass(value, Enum):
        return [member.value for member in value]
    return value.value if isinstance(value, Enum) else value


def Custom(io_type: str) -> SocketType:  # noqa: N802 (the host's spelling)
    """A socket type of our own."""
    return SocketType(io_type)


_NUMBER_OPTIONS = _WIDGET_OPTIONS | {"min", "max", "step", "display_mode"}
Int = SocketType("INT", _NUMBER_OPTIONS | {"control_after_generate"})
Float = SocketType("FLOAT", _NUMBER_OPTIONS | {"round"})
String = SocketType("STRING", _WIDGET_OPTIONS | {"multiline", "placeholder", "dynamic_prompts"}, multiline=False)
Boolean = SocketType("BOOLEAN", _WIDGET_OPTIONS | {"label_on", "label_off"})
Combo = SocketType(
    "COMBO", (_WIDGET_OPTIONS - {"force_input"}) | {"options", "control_after_generate"}, multiselect=False
)
Image = Custom("IMAGE")
Mask = Custom("MASK")
Latent = Custom("LATENT")
Conditioning = Custom("CONDITIONING")
Vae = Custom("VAE")
Video = Custom("VIDEO")
Sampler = Custom("SAMPLER")
Sigmas = Custom("SIGMAS")
Clip = Custom("CLIP")
Model = Custom("MODEL")


@dataclass(kw_only=True)
class Schema:
    """The description of a node. Fields after the blank comment line came after the oldest supported host."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[InputSocket] = field(default_factory=list)
    outputs: list[OutputSocket] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    not_idempotent: bool = False
    #
    search_aliases: list[str] = field(default_factory=list)
    essentials_category: str | None = None
    has_intermediate_output: bool = False


class NodeOutput:
    """What a node's execute returns: its outputs in order, and optionally something to show.

    Args:
        args: one value per output.
        ui: for the front end: a dict of lists.
    """

    def __init__(self, *args: Any, ui: dict[str, Any] | None = None) -> None:
        self.args = args
        self.ui = ui

    @property
    def result(self) -> tuple[Any, ...] | None:
        """The outputs, or None when there are none."""
        return self.args or None

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class ComfyNode:
    """Base of every node. State is not kept on it: `execute` is a class method."""

    # what Schema.hidden asks for, filled in on a copy of the class while it runs
    hidden: ClassVar[Any] = None

    @classmethod
    def define_schema(cls) -> Schema:
        """The node's description; called often, so it must be cheap."""
        raise NotImplementedError

    @classmethod
    def execute(cls, *args: Any, **kwargs: Any) -> NodeOutput:
        """Runs the node; arguments are named as its inputs."""
        raise NotImplementedError

    @classmethod
    def GET_SCHEMA(cls) -> Schema:  # noqa: N802 (the host's spelling)
        """The checked schema, with the hidden inputs that every output node gets.

        Raises:
            ValueError: two inputs or two outputs of one id.
        """
        schema = cls.define_schema()
        for sockets in (schema.inputs, schema.outputs):
            ids = [socket.id for socket in sockets if socket.id is not None]
            if len(set(ids)) != len(ids):
                raise ValueError(f"{schema.node_id}: ids must be unique, got {ids}")
        wanted = [Hidden.prompt, Hidden.extra_pnginfo] if schema.is_output_node else []
        schema.hidden = schema.hidden + [name for name in wanted if name not in schema.hidden]
        return schema

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:  # noqa: N802 (the host's spelling)
        """The inputs in the host's older notation: group -> id -> (type, options)."""
        schema = cls.GET_SCHEMA()
        groups: dict[str, dict[str, Any]] = {"required": {}}
        for socket in schema.inputs:
            group = groups.setdefault("optional" if socket.optional else "required", {})
            group[socket.id] = (socket.io_type, dict(socket.options))
        if schema.hidden:
            groups["hidden"] = {name.name: (name.value,) for name in schema.hidden}
        return groups

    @classmethod
    def GET_NODE_INFO_V1(cls) -> dict[str, Any]:  # noqa: N802 (the host's spelling)
        """The description that the host sends to its front end."""
        schema, inputs = cls.GET_SCHEMA(), cls.INPUT_TYPES()
        return {
            "input": inputs,
            "input_order": {group: list(sockets) for group, sockets in inputs.items()},
            "is_input_list": schema.is_input_list,
            "output": [socket.io_type for socket in schema.outputs],
            "output_is_list": [socket.is_output_list for socket in schema.outputs],
            "output_name": [socket.display_name or socket.io_type for socket in schema.outputs],
            "output_tooltips": [socket.tooltip for socket in schema.outputs],
            "name": schema.node_id,
            "display_name": schema.display_name,
            "description": schema.description,
            "category": schema.category,
            "output_node": schema.is_output_node,
            "deprecated": schema.is_deprecated,
            "experimental": schema.is_experimental,
            "search_aliases": schema.search_aliases or None,
            "essentials_category": schema.essentials_category,
            "has_intermediate_output": schema.has_intermediate_output,
        }
