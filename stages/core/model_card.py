"""What the cards of the merged model and of the run say about where it came from."""

from pathlib import PurePath


def base_name(manifest: dict) -> str:
    """Where the base came from; a path outside the repository is a matter of one machine, so only its end is told."""
    name = str(manifest.get("id") or manifest.get("path") or "a local folder")
    return PurePath(name).name if PurePath(name).is_absolute() else name


def precision(quantization: dict) -> str:
    """In what the base was held for training. quantization: the section of the params."""
    return {4: f"4 bits ({quantization['quant_type']})", 8: "8 bits (LLM.int8)", 16: "16 bits"}[quantization["bits"]]


def front_matter(manifest: dict, quantization: dict, datasets: list[str] | None = None) -> str:
    """The YAML block that hubs read, with its fences. Only what lies on the hub is named as base_model. quantization:
    the section of the params."""
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
