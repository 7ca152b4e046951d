"""Asks the hub whether this user may download the base model, and under which licence. Needs the network."""

from stages.core.params import Model
from stages.runtime.hub_errors import HUB_ANSWER_SECONDS, explain_hub_error
from tools._doctor.finding import Finding


def check_hub(model: Model) -> Finding:
    if model.source != "hub":
        return Finding("hub", f"not needed: the base is the folder {model.path}")
    import httpx2
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    try:
        info = HfApi().model_info(model.id, revision=model.revision, timeout=HUB_ANSWER_SECONDS)
        # The description of a gated model is public; its files are not.
        get_hf_file_metadata(hf_hub_url(model.id, "config.json", revision=model.revision), timeout=HUB_ANSWER_SECONDS)
    except (OSError, httpx2.HTTPError, RuntimeError, ValueError) as error:
        reason = explain_hub_error(error, "model", "model")
        return Finding("hub", f"no access to {model.id}", reason[0].upper() + reason[1:])
    card = info.card_data
    licence = card.get("license") if card else None
    if not licence:
        return Finding("hub", f"{model.id} can be read, but its card names no licence; read the card before you share")
    return Finding("hub", f"{model.id} can be read; its licence is {licence}")
