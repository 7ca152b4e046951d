"""The base that params.yaml names has its sizes before it is downloaded, and no other model is counted in its place."""

import pytest

from stages.core.paths import write_json
from stages.runtime.activations import shape_of
from stages.runtime.base_shape import FAMILY, named_base
from stages.runtime.errors import UserError
from stages.runtime.memory import GIBIBYTE
from stages.runtime.memory_table import plan_table

SEVEN = "mistralai/Mistral-7B-v0.3"
REVISION = "c" * 40
CONFIG = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32768,
    "tie_word_embeddings": False,
}


@pytest.fixture
def hub(params_of, tmp_path, monkeypatch):
    """hub(id) is the section `model` for a model of the hub, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def build(name, revision=REVISION):
        return params_of(model={"source": "hub", "path": "assets/hub-model", "id": name, "revision": revision}).model

    return build


def put_base(folder, model, config=CONFIG):
    """models/base as download_model leaves it for `model`."""
    origin = {"id": model.id, "revision": model.revision} if model.source == "hub" else {"path": model.path}
    empty = {"id": None, "revision": None, "path": None}
    write_json(folder / "models/base/manifest.json", empty | {"source": model.source} | origin)
    write_json(folder / "models/base/config.json", config)


@pytest.mark.parametrize(
    ("name", "parameters"),  # as the hub counts them in the published weights
    [
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("mistralai/Mistral-7B-Instruct-v0.2", 7_241_732_096),
        (SEVEN, 7_248_023_552),
        ("mistralai/Mistral-Nemo-Base-2407", 12_247_782_400),
        ("mistralai/Ministral-8B-Instruct-2410", 8_019_808_256),
        ("mistralai/Mistral-Small-24B-Base-2501", 23_572_403_200),
    ],
)
def test_the_tables_shapes_have_as_many_parameters_as_the_published_weights(name, parameters):
    assert FAMILY[name].parameters == parameters


def test_a_shape_counts_the_parameters_of_transformers_model(small_base):
    from stages.core.paths import read_json

    shape = shape_of(read_json(small_base / "config.json"))
    assert shape.tied
    assert shape.parameters == read_json(small_base / "manifest.json")["parameters"]


def test_a_hub_model_that_is_not_downloaded_is_counted_from_the_table_which_is_said(hub):
    base = named_base(hub(SEVEN))
    assert base.shape == shape_of(CONFIG)
    assert base.origin.startswith(f"{SEVEN}, 7,248,023,552 parameters. It is not downloaded, so its sizes come from a")


def test_the_plan_of_a_7b_that_is_not_downloaded_is_the_plan_of_a_7b(hub, params_of, tmp_path):
    model = hub(SEVEN).model_dump()
    before = plan_table(params_of(model=model), 24 * GIBIBYTE).splitlines()
    put_base(tmp_path, hub(SEVEN))
    after = plan_table(params_of(model=model), 24 * GIBIBYTE).splitlines()
    assert before[1:] == after[1:]
    assert after[0] == f"{SEVEN}, 7,248,023,552 parameters, counted from models/base/config.json"


def test_a_hub_model_outside_the_table_says_what_to_do(hub):
    with pytest.raises(
        UserError, match=r"^owner/name at .* It is not downloaded, and .* table.* Run `dvc repro download_model`"
    ):
        named_base(hub("owner/name"))


def test_a_folder_is_read_where_it_is(params_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = params_of(model={"path": "mine"}).model
    with pytest.raises(UserError, match=r"^mine/config\.json is missing, or has not the sizes .*Set model\.path"):
        named_base(model)
    write_json(tmp_path / "mine/config.json", CONFIG)
    assert named_base(model).origin == "mine, 7,248,023,552 parameters, counted from mine/config.json"


def test_another_model_in_models_base_is_never_counted_in_place_of_the_one_in_params_yaml(hub, params_of, tmp_path):
    """As after the rehearsal with the tiny model: `make run`, then the profile of the 7B."""
    put_base(tmp_path, params_of().model)
    base = named_base(hub(SEVEN))
    assert base.shape == shape_of(CONFIG)
    assert "models/base is assets/tiny-mistral, so its sizes come from a table" in base.origin
    with pytest.raises(UserError, match=r"^owner/name at .* models/base is assets/tiny-mistral, and its sizes are not"):
        named_base(hub("owner/name"))


def test_another_revision_in_models_base_is_not_counted(hub, tmp_path):
    put_base(tmp_path, hub(SEVEN), CONFIG | {"num_hidden_layers": 30})
    base = named_base(hub(SEVEN, "d" * 40))
    assert base.shape == shape_of(CONFIG)
    assert f"models/base is {SEVEN} at {REVISION}, so its sizes come from a table" in base.origin


@pytest.mark.parametrize("damaged", ["manifest.json", "config.json"])
def test_a_damaged_base_says_what_to_do(hub, tmp_path, damaged):
    put_base(tmp_path, hub(SEVEN))
    (tmp_path / "models/base" / damaged).write_text("[]")
    with pytest.raises(UserError, match=rf"models/base/{damaged} is missing.* Run `rm -rf models/base` and `dvc repro"):
        named_base(hub(SEVEN))


def test_config_json_counts_where_it_differs_from_the_table_which_is_reported(hub, tmp_path):
    put_base(tmp_path, hub(SEVEN), CONFIG | {"num_hidden_layers": 30, "vocab_size": 32000})
    base = named_base(hub(SEVEN))
    assert base.shape.layers == 30
    assert (
        "differs from the table in stages/runtime/base_shape.py: layers 30 instead of 32, vocabulary 32000 instead of"
        in (base.origin)
    )
