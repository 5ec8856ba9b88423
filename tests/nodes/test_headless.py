"""The host without ComfyUI: folders, progress, interruption, memory."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.memory import Layout, PlainDevice, Residency
from hyvideo_nodes.nodes.host import headless
from hyvideo_nodes.nodes.host.headless import Folders, ModulePatcher


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headless, "_folders", [])
    monkeypatch.setattr(headless, "_placed", [])


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two roots of models and an embedded folder, each with a VAE."""
    for name in ("one/vae/a.pt", "two/vae/b.pt", "two/unet/old.pt", "embedded/vae/tiny.pt", "embedded/vae/a.pt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.setattr(headless, "EMBEDDED", tmp_path / "embedded")
    headless.use_folders(Folders(models=(tmp_path / "one", tmp_path / "two")))
    return tmp_path


def test_users_files_come_before_embedded_ones(models: Path) -> None:
    assert headless.model_files("vae") == ["a.pt", "b.pt", "tiny.pt"]
    assert headless.resolve("vae", "a.pt") == models / "one" / "vae" / "a.pt"
    assert headless.resolve("vae", "tiny.pt") == models / "embedded" / "vae" / "tiny.pt"


def test_older_folder_names_still_count(models: Path) -> None:
    assert headless.model_files("diffusion_models") == ["old.pt"]


def test_folders_are_those_that_were_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert headless.output_folder() == tmp_path / "output"
    headless.use_folders(Folders(output=tmp_path / "o", input=tmp_path / "i", user=tmp_path / "u"))
    found = [headless.output_folder(), headless.input_folder(), headless.user_folder()]
    assert found == [tmp_path / "o", tmp_path / "i", tmp_path / "u"]
    assert headless.temp_folder() == headless.temp_folder()
    assert headless.temp_folder().is_dir()


def test_models_of_comfyui_are_found_from_custom_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "vae").mkdir(parents=True)
    shipped = tmp_path / "comfy" / "sd1_tokenizer"
    shipped.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        (shipped / name).write_text("")
    monkeypatch.setattr(headless, "PACK_ROOT", tmp_path / "custom_nodes" / "hyvideo-nodes")
    assert Folders().models == (tmp_path / "models",)
    assert headless.host_tokenizers("clip") == [shipped]
    monkeypatch.setattr(headless, "PACK_ROOT", tmp_path / "elsewhere" / "hyvideo-nodes")
    headless.use_folders(Folders(models=(tmp_path / "models",)))
    assert headless.host_tokenizers("clip") == [shipped]
    headless.use_folders(Folders())
    monkeypatch.setattr(headless, "PACK_ROOT", tmp_path / "elsewhere" / "hyvideo-nodes")
    assert Folders().models == ()
    assert headless.host_tokenizers("clip") == []


def test_progress_goes_to_stderr_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    bar = headless.progress(4)
    bar.update(1)
    bar.update(4, None)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "4/4" in captured.err


def test_request_to_stop_is_raised_once() -> None:
    headless.check_interrupt()
    headless.interrupt()
    with pytest.raises(headless.Interrupted):
        headless.check_interrupt()
    headless.check_interrupt()
    assert not issubclass(headless.Interrupted, Exception)


def test_placing_keeps_weights_trainable() -> None:
    module = torch.nn.Linear(3, 2)
    with torch.inference_mode():
        assert headless.place(headless.make_patcher(module, "transformer")) == headless.device_for("transformer")
    module(torch.ones(1, 3, device=module.weight.device)).sum().backward()
    assert module.weight.grad is not None


def test_sizes_count_buffers() -> None:
    patcher = headless.make_patcher(torch.nn.BatchNorm1d(4), "vae")
    assert patcher.model_size() == 4 * 4 * 4 + 8


class _Card:
    """A pretended GPU of a few bytes: the meta device, with its free memory counted from what is placed on it."""

    device = torch.device("meta")

    def __init__(self, size: int) -> None:
        self.size = size
        self.patchers: list[ModulePatcher] = []

    def patcher(self, floats: int) -> ModulePatcher:
        module = torch.nn.Module()
        module.register_parameter("weight", torch.nn.Parameter(torch.zeros(floats)))
        patcher = _Movable(module, self.device, torch.device("cpu"))
        self.patchers.append(patcher)
        return patcher

    def free(self, device: torch.device) -> int:
        return self.size - sum(patcher.loaded_size() for patcher in self.patchers)


class _Movable(ModulePatcher):
    """Moves without contents, of which the meta device has none."""

    def move(self, device: torch.device) -> None:
        self.model.to_empty(device=device)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> _Card:
    card = _Card(1000)
    monkeypatch.setattr(headless, "_free_bytes", card.free)
    return card


def test_modules_stay_while_there_is_room(card: _Card) -> None:
    first, second = card.patcher(100), card.patcher(100)
    assert headless.place(first) == headless.place(second) == card.device
    assert first.loaded_size() == second.loaded_size() == 400


def test_the_longest_unused_leaves_first(card: _Card) -> None:
    first, second, third = card.patcher(100), card.patcher(100), card.patcher(100)
    for patcher in (first, second, first, third):
        headless.place(patcher)
    assert [p.loaded_size() for p in (first, second, third)] == [400, 0, 400]


def test_memory_for_the_run_counts(card: _Card) -> None:
    first, second = card.patcher(100), card.patcher(100)
    headless.place(first)
    headless.place(second, memory_required=201)
    assert first.loaded_size() == 0


def test_a_module_never_sends_itself_away(card: _Card) -> None:
    patcher = card.patcher(100)
    headless.place(patcher)
    headless.place(patcher, memory_required=10_000)
    assert patcher.loaded_size() == 400


def test_forgotten_modules_are_not_kept_alive(card: _Card) -> None:
    patcher = card.patcher(100)
    headless.place(patcher)
    card.patchers.clear()
    del patcher
    gc.collect()
    assert [ref() for ref in headless._placed] == [None]
    headless.free_memory(5000, card.device)


def _streamed(card: _Card, num_blocks: int = 4) -> headless.StreamedPatcher:
    """A model of blocks of 256 bytes each, of which as many as there is room for may stay on the card."""
    blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(num_blocks))
    layout = Layout(walked=tuple(str(index) for index in range(num_blocks)))
    residency = Residency(blocks.to("meta"), layout, PlainDevice(card.device))
    patcher = headless.StreamedPatcher(residency, card.device, torch.device("cpu"))
    card.patchers.append(patcher)
    return patcher


def test_a_streamed_model_keeps_what_fits_beside_the_run_and_others_can_send_it_away(
    card: _Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headless, "RESERVED_BYTES", 100)
    streamed, other = _streamed(card), card.patcher(100)
    for memory_required, blocks in ((0, 3), (300, 2), (0, 3), (10_000, 0), (0, 3)):
        assert headless.place_streamed(streamed, memory_required) == card.device
        assert streamed.loaded_size() == blocks * 256
    headless.place(other)
    assert (streamed.loaded_size(), other.loaded_size()) == (0, 400)
    headless.place_streamed(streamed, 0)
    assert (streamed.loaded_size(), other.loaded_size()) == (768, 0)


def test_a_patcher_of_the_other_kind_is_refused(card: _Card) -> None:
    with pytest.raises(TypeError, match="make_streamed_patcher, got _Movable"):
        headless.place_streamed(card.patcher(1), 0)
    with pytest.raises(TypeError, match="make_patcher, got StreamedPatcher"):
        headless.place(_streamed(card))


def test_a_foreign_patcher_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a patcher of make_patcher, got object"):
        headless.place(object())


def test_nothing_of_comfyui_exists_here() -> None:
    assert headless.preview_factors() is None
    assert not headless.preview_wanted()
    assert not headless.is_host_vae(object())
    assert headless.device_for("intermediate") == torch.device("cpu")


def test_extension_lists_its_nodes() -> None:
    nodes = [type("A", (headless.io.ComfyNode,), {})]
    assert asyncio.run(headless.extension(nodes).get_node_list()) == nodes
