"""What training's options leave behind can be merged, and the merged model is the one that was trained."""

import pytest
from safetensors.torch import save_file

from stages import merge
from stages.shared.four_bit import SAMPLES, VALUES
from stages.shared.paths import ADAPTER, BASE, METRICS, TOKENIZED, read_json, write_json
from tests.conftest import write_rows
from tests.test_train import rows
from tests.test_train_options import BITS, OPTIONS, options_of, place, saved, trainer_of  # noqa: F401  (fixtures)

KINDS = ("rslora", "dora", "loftq", "pissa", "olora with rslora", "16 bits", "q and v", "fp4")


def merged(params, trained_by, folder) -> dict:
    """Trains, merges, and reads what the stage says of it."""
    trainer = trained_by(params)
    trainer.run(None)
    saved(trainer, ADAPTER)
    write_json(ADAPTER / VALUES, trainer.values.hashes)
    save_file(trainer.values.samples, ADAPTER / SAMPLES)
    (folder / TOKENIZED).mkdir(parents=True)
    write_rows(TOKENIZED / "validation.arrow", rows(2))
    merge.main(params)
    return read_json(METRICS / "merge.json") | {"validation_loss": trainer.evaluate()["eval_loss"]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_the_trained_one(kind, options_of, place, trainer_of):  # noqa: F811
    exact = {"merge": {"base": "dequantized", "parity_rows": 2, "max_loss_gap": 0.02, "max_kl": 0.01}}
    params = options_of(**OPTIONS[kind] | exact)
    metrics = merged(params, trainer_of, place)
    assert metrics["merged_modules"] == (4 if kind == "q and v" else 14)
    # To the last bit, but where the trained base is no longer the one that the saved adapter goes onto.
    rounding = 1e-3 if params.lora.init in ("pissa", "olora") else 1e-6
    assert metrics["parity"]["loss_trained"] == pytest.approx(metrics["validation_loss"], rel=rounding)
    assert metrics["values"]["different"] == 0
    assert (metrics["values"]["compared"] == 0) == (params.quantization.bits == 16)
    assert metrics["parity"]["top1_agreement"] > 0.8  # of two dozen tokens, whose likeliest are nearly even
    if params.quantization.bits == 4:
        assert metrics["naive"]["kl"] > 3 * metrics["parity"]["kl"]


@pytest.mark.slow
def test_of_8_bits_the_merge_onto_the_16_bit_weights_is_compared(options_of, place, trainer_of):  # noqa: F811
    bounds = {"parity_rows": 2, "max_loss_gap": 1.0, "max_kl": 1.0}
    params = options_of(quantization={"bits": 8}, merge=BITS[8]["merge"] | bounds)
    assert 0 < merged(params, trainer_of, place)["parity"]["kl"] < 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bits": 4, "quant_type": "fp4"}, "in 4 bits (fp4), merged onto those 4-bit values, kept in 16 bits."),
        ({"bits": 16}, "in 16 bits, merged onto the base's 16-bit weights."),
    ],
)
def test_the_merged_models_card_says_in_what_the_base_was_held(params_of, tmp_path, monkeypatch, values, said):
    monkeypatch.chdir(tmp_path)
    write_json(BASE / "manifest.json", {"id": "owner/base", "revision": None, "license": None})
    params = params_of(quantization=values, merge={"base": "dequantized"})
    parity = {"tokens": 1, "loss_gap": 0.0, "kl": 0.0, "top1_agreement": 1.0}
    assert f"trained on owner/base {said}" in merge.card(params, {"r": 4, "lora_alpha": 8}, parity)
