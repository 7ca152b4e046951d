"""Fixtures for all tests. More are in the plugins named below."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.core.params import Params
from stages.core.yaml_files import read_yaml
from tests.support.project import ROOT

# A script's job in the background ignores Ctrl-C, and so would every process that a test starts there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    *("tests.support.cleaning", "tests.support.hub", "tests.support.pipeline", "tests.support.small_run"),
    "tests.support.training",
]

# They run first, so that no worker of pytest-xdist begins a long file when the others have ended. The first one makes
# the run that others read; the second one does not wait for it.
LONGEST = [
    *("test_whole_run", "test_train_faults", "test_pipeline", "test_sweep", "test_bench_train", "test_train_several"),
    *("test_reliability", "test_sharing", "test_code_changes", "test_experiments", "test_train_options"),
    *("test_merge_options", "test_bench", "test_generate", "test_clean_duplicates", "test_workflows"),
    *("test_train_resume", "test_tools_plan", "test_commands", "test_merge"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the files that are named above to the front."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On models this small several threads mostly wait for each other, the more so where the cores are shared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Takes back what a test changed in the environment: stages and tools set variables in their own process."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The values that params.yaml comes with, whatever a user has set there."""
    return ROOT / "tests/params.yaml"


@pytest.fixture(scope="session")
def params_of(tiny) -> Callable[..., Params]:
    """params_of(model={"path": "x"}) is the tiny profile with model.path changed."""

    def build(**sections: dict | int) -> Params:
        values = read_yaml(tiny)
        for name, change in sections.items():
            values[name] = {**values[name], **change} if isinstance(change, dict) else change
        return Params.model_validate(values)

    return build


@pytest.fixture(scope="session")
def small_base(tmp_path_factory, params_of) -> Path:
    """models/base as download_model leaves it: a Mistral of 2 layers with random weights and the real vocabulary."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from stages.core.paths import write_json
    from stages.download_model import download_model

    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=32768,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=None,
        tie_word_embeddings=True,
        initializer_range=0.1,  # so that attention matters: a leak between packed conversations must show
    )
    MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "source", max_shard_size="3MB")
    base = folder / "models" / "base"
    base.mkdir(parents=True)
    params = params_of(model={"path": str(folder / "source")})
    write_json(base / "manifest.json", download_model(params.model, base))
    return base
