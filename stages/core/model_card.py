"""What the cards of the merged model and of the run say about their origin."""

from pathlib import PurePath


def base_name(manifest: dict) -> str:
    """Where the base came from.

    Of a path outside the repository only the last part, since the rest is about one machine.
    """
    name = str(manifest.get("id") or manifest.get("path") or "a local folder")
    return PurePath(name).name if PurePath(name).is_absolute() else name


def precision(quantization: dict) -> str:
    """The precision of the base in training. quantization: the section of the params."""
    return {4: f"4 bits ({quantization['quant_type']})", 8: "8 bits (LLM.int8)", 16: "16 bits"}[quantization["bits"]]


def front_matter(manifest: dict, quantization: dict, datasets: list[str] | None = None) -> str:
    """The YAML block that hubs read, with its fences. Only a base from the hub is named as base_model.

    Args:
        quantization: The section of the params.
        datasets: Ids of data sets on the hub.
    """
    from huggingface_hub import ModelCardData

    on_hub = {"base_model": manifest["id"], "base_model_relation": "merge"} if manifest.get("id") else {}
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=manifest.get("license"),
        datasets=datasets or None,
        tags=["mistral", "qlora" if quantization["bits"] == 4 else "lora"],
        **on_hub,
    )
    return f"---\n{data.to_yaml()}\n---\n"
