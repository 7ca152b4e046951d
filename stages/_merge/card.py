"""README.md of the merged model."""

from stages.core.model_card import base_name, front_matter, precision
from stages.core.params import Params
from stages.core.paths import BASE, read_json

CARD_TEXT = """# Merged model
{kind} of rank {r} (alpha {alpha}), trained on {base} in {precision}, merged onto {onto}.

On {tokens} tokens of the validation split its loss is {loss_gap:+.5f} nats a token from that of base and adapter as
they were trained; KL divergence {kl:.6f}, the same most likely token on {top1_agreement:.2%}.
{other}
Prompts follow Mistral's instruct format {template}: see chat_template.jinja.
"""
ONTO = {"dequantized": "those 4-bit values, kept in 16 bits", "original": "the base's 16-bit weights"}


def merged_model_card(params: Params, config: dict, parity: dict[str, float], deviation: str = "") -> str:
    """README.md of the merged model.

    Args:
        config: The adapter's configuration.
        parity: The means of compare(), which the card quotes.
        deviation: How the 4-bit values differ from those of training; empty where they do not.
    """
    manifest = read_json(BASE / "manifest.json")
    kind = "DoRA" if config.get("use_dora") else "rsLoRA" if config.get("use_rslora") else "LoRA"
    base = f"{base_name(manifest)} at {manifest['revision']}" if manifest["revision"] else base_name(manifest)
    text = CARD_TEXT.format(
        kind=f"A {kind} adapter" if kind != "rsLoRA" else "An rsLoRA adapter",
        r=config["r"],
        alpha=config["lora_alpha"],
        base=base,
        precision=precision(params.quantization.model_dump()),
        onto=ONTO["original" if params.quantization.bits == 16 else params.merge.base],
        template=params.prompt.template,
        other=f"\nNot exact: {deviation}.\n" if deviation else "",
        **parity,
    )
    return front_matter(manifest, params.quantization.model_dump()) + text
