"""The results of all training options can be merged, and the merged model is the trained one."""

import pytest
from safetensors.torch import save_file

from stages import merge
from stages._merge.card import merged_model_card
from stages._train.checkpointing import Checkpoints
from stages._train.metrics import losses
from stages.core.paths import ADAPTER, BASE, METRICS, TOKENIZED, read_json, write_json
from stages.core.quantization import VALUE_HASHES, VALUE_SAMPLES
from tests.support.data_files import write_rows
from tests.support.training import BITS, OPTIONS, rows, saved

KINDS = [kind for kind in OPTIONS if kind != "8 bits"]
EXACT = {"merge": {"base": "dequantized", "parity_rows": 2, "max_loss_gap": 0.02, "max_kl": 0.01}}


def merged(params, trained_by, folder, **options) -> dict:
    """Trains, merges, and reads what the stage measured."""
    trainer = trained_by(params, **options)
    trainer.run(None)
    saved(trainer, ADAPTER)
    write_json(ADAPTER / VALUE_HASHES, trainer.values.hashes)
    save_file(trainer.values.samples, ADAPTER / VALUE_SAMPLES)
    (folder / TOKENIZED).mkdir(parents=True)
    write_rows(TOKENIZED / "validation.arrow", rows(2))
    merge.main(params)
    found = losses(trainer.state.log_history, keeps_best=params.train.early_stopping_patience is not None)
    return read_json(METRICS / "merge.json") | {
        "validation_loss": trainer.evaluate()["eval_loss"],
        "best_loss": found["validation_loss"],
        "best_step": found["adapter_step"],
        "steps": trainer.state.global_step,
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_the_trained_one(kind, options_of, training_folder, trainer_of):
    params = options_of(**OPTIONS[kind] | EXACT)
    metrics = merged(params, trainer_of, training_folder)
    assert metrics["merged_modules"] == (4 if kind in ("q and v", "some targets") else 14)
    # Equal to the last bit, except where training changed the base that the saved adapter is for.
    rounding = 1e-3 if params.lora.init in ("pissa", "olora") else 1e-6
    assert metrics["parity"]["loss_trained"] == pytest.approx(metrics["validation_loss"], rel=rounding)
    assert metrics["values"]["different"] == 0
    assert (metrics["values"]["compared"] == 0) == (params.quantization.bits == 16)
    assert metrics["parity"]["top1_agreement"] > 0.8  # of two dozen tokens, whose most likely ones are nearly equal
    if params.quantization.bits == 4:
        assert metrics["naive"]["kl"] > 3 * metrics["parity"]["kl"]


@pytest.mark.slow
def test_what_goes_on_from_an_earlier_adapter_is_merged(options_of, training_folder, trainer_of):
    first = trainer_of(options_of())
    first.run(None)
    saved(first, training_folder / "data/adapters/first")
    params = options_of(lora={"init_from": "first"}, train={"learning_rate": 5e-3}, **EXACT)
    metrics = merged(params, trainer_of, training_folder, checkpoints=Checkpoints({"number": 1}, limit=1))
    assert metrics["parity"]["loss_trained"] == pytest.approx(metrics["validation_loss"], rel=1e-6)
    assert metrics["naive"]["kl"] > 3 * metrics["parity"]["kl"]


@pytest.mark.slow
def test_the_best_adapter_and_not_the_last_is_merged(options_of, training_folder, trainer_of):
    """Validated on rows that are not learned, so that the loss soon rises."""
    train = {"early_stopping_patience": 3, "eval_steps": 1, "learning_rate": 0.03}
    params = options_of(train=train, **EXACT)
    metrics = merged(params, trainer_of, training_folder, validation=rows(2, seed=9))
    assert metrics["best_step"] < metrics["steps"]
    assert metrics["best_loss"] == pytest.approx(metrics["validation_loss"], rel=1e-6)


@pytest.mark.slow
def test_of_8_bits_the_merge_onto_the_16_bit_weights_is_compared(options_of, training_folder, trainer_of):
    bounds = {"parity_rows": 2, "max_loss_gap": 1.0, "max_kl": 1.0}
    params = options_of(quantization={"bits": 8}, merge=BITS[8]["merge"] | bounds)
    assert 0 < merged(params, trainer_of, training_folder)["parity"]["kl"] < 1


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
    assert f"trained on owner/base {said}" in merged_model_card(params, {"r": 4, "lora_alpha": 8}, parity)
