"""The benchmark of `merge`, on a base of two small layers."""

from types import SimpleNamespace

import pytest
import torch

from bench import merge as bench

WIDTH, FEED_FORWARD = 64, 128
SMALL = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    **{"mlp.gate_proj": (FEED_FORWARD, WIDTH), "mlp.up_proj": (FEED_FORWARD, WIDTH)},
    "mlp.down_proj": (WIDTH, FEED_FORWARD),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    small = {"WIDTH": WIDTH, "FEED_FORWARD": FEED_FORWARD, "HEADS": (2, 2), "VOCABULARY": 100, "RANK": 4}
    for name, value in (small | {"PROJECTIONS": SMALL, "SHARD": 1 << 16}).items():
        monkeypatch.setattr(bench, name, value)
    bench.make_base(tmp_path / "base", layers=2)
    bench.make_adapter(tmp_path / "adapter", layers=2)
    return tmp_path


def test_every_way_writes_a_model_and_ours_onto_16_bits_is_pefts(folder):
    paths = (folder / "base", folder / "adapter")
    bench.peft(*paths, folder / "peft")
    for onto in ("original", "dequantized"):
        bench.ours(*paths, folder / onto, onto)
    assert len(list((folder / "original").glob("*.safetensors"))) > 1
    assert bench.difference(folder / "original", folder / "peft") < 1e-3  # a last bit, where sums round otherwise
    assert bench.difference(folder / "dequantized", folder / "peft") > 0.5
    torch.testing.assert_close(*(first_values(folder / name) for name in ("original", "peft")), atol=1e-3, rtol=1e-2)


def test_a_disk_too_small_is_said_with_what_would_fit(tmp_path, monkeypatch):
    sizes = [3 * 2 * (layers * 218_103_808 + 2 * 32768 * 4096) for layers in (3, 8)]
    monkeypatch.setattr(bench.shutil, "disk_usage", lambda _: SimpleNamespace(free=sizes[0]))
    with pytest.raises(SystemExit, match=rf"8 layers need {sizes[1] / 1e9:.0f} GB in .*enough for 3 layers"):
        bench.main(bench.read_options(["8", "--folder", str(tmp_path)]))


def first_values(folder):
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if "model.layers.0.mlp.up_proj.weight" in file.keys():  # noqa: SIM118
                return file.get_tensor("model.layers.0.mlp.up_proj.weight")
    raise AssertionError(f"{folder} has no such tensor")
