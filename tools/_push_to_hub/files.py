"""Collects the files of an upload: those of the pipeline, and the card."""

import re
from pathlib import Path
from typing import NamedTuple

from stages.core.params import load_params
from stages.core.paths import ADAPTER, MERGED, REPORTS
from stages.core.prompts import CHAT_TEMPLATES
from stages.runtime.errors import UserError

FOLDERS = {"merged": (MERGED, "merge"), "adapter": (ADAPTER, "train")}
CARD = REPORTS / "model-card.md"
ALLOWED_SUFFIXES = (".safetensors", ".json", ".jinja")  # and the card
# Names of files that the stages write to models/merged and models/adapter.
OWN_FILES = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json|"
    r"adapter_model\.safetensors|adapter_config\.json|base_values\.(?:json|safetensors)|chat_template\.jinja|"
    r"tokenizer\.json|tokenizer_config\.json|tokenizer\.model(\.v3)?|special_tokens_map\.json|added_tokens\.json"
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib")
ADAPTER_USE = """## Use

This is the adapter alone, in PEFT's layout; the results above are those of the model that it was merged into.
`PeftModel.from_pretrained` puts it onto the base, which training loaded with the `quantization` of the parameters
below. Prompts follow Mistral's instruct format {template}, as chat_template.jinja writes it.

"""


class Upload(NamedTuple):
    """What goes to the hub.

    Args:
        files: {path on the hub: a file, or the bytes themselves}
        message: The first line of the commit.
        description: The rest of its message.
    """

    files: dict[str, Path | bytes]
    message: str
    description: str


def files_of(folder: Path, stage: str) -> dict[str, Path | bytes]:
    """The folder's files without its README.md, which the card replaces.

    Raises:
        UserError: The folder is missing or has no weights, or a file does not belong there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is missing. `dvc repro {stage}` makes it, or `dvc pull {folder}` brings it")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    files.pop("README.md", None)
    for name, path in files.items():
        if not path.exists():
            raise UserError(f"{path} is a link to a missing file of DVC's cache. `dvc pull {folder}` brings it")
        if name.endswith(PICKLES):
            raise UserError(
                f"{folder / name} may be a pickle, which runs code when it is loaded. Remove it; weights go as "
                "safetensors"
            )
        if not (name.endswith(ALLOWED_SUFFIXES) or OWN_FILES.fullmatch(name)):
            raise UserError(
                f"{folder / name} is none of the pipeline's files ({', '.join(ALLOWED_SUFFIXES)}). Remove it"
            )
    check_safetensors([path for name, path in files.items() if name.endswith(".safetensors")], folder, stage)
    return files


def check_safetensors(paths: list[Path], folder: Path, stage: str) -> None:
    from safetensors import SafetensorError, safe_open

    if not paths:
        raise UserError(f"{folder} has no weights. `dvc repro {stage}` makes them")
    for path in paths:
        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError as error:
            raise UserError(f"{path} is no safetensors file ({error}). `dvc repro {stage}` makes it") from None


def adapter_card(card: str, template: str) -> str:
    """The merged model's card, changed into one of the adapter."""
    from huggingface_hub import ModelCard

    changed = ModelCard(re.sub(r"(?ms)^## Use\n.*?(?=^## )", lambda _: ADAPTER_USE.format(template=template), card))
    changed.data.library_name = "peft"
    if changed.data.base_model:
        changed.data.base_model_relation = "adapter"
    return str(changed)


def prepare_upload(name: str, commit: str, forced: str | None) -> Upload:
    """Collects the upload. forced: what differs from the commit, if it is uploaded all the same."""
    folder, stage = FOLDERS[name]
    template = load_params().prompt.template
    files = files_of(folder, stage)
    if not CARD.is_file():
        raise UserError(f"{CARD} is missing. `dvc repro report` makes it, or `dvc pull {REPORTS}` brings it")
    card = CARD.read_text(encoding="utf-8")
    if name == "adapter":
        card = adapter_card(card, template)
        files.setdefault("chat_template.jinja", CHAT_TEMPLATES[template].encode())
    files["README.md"] = card.encode()
    doubt = f"\n\nNot just of that commit: {forced}" if forced else ""
    return Upload(
        dict(sorted(files.items())),
        f"{folder} of Git commit {commit[:12]}{' and changes' if forced else ''}",
        f"Git commit {commit}{doubt}",
    )


def left_over(there: list[str], upload: Upload) -> list[str]:
    """The files of an earlier upload that this one does not replace."""
    return [name for name in there if OWN_FILES.fullmatch(name) and name not in upload.files]


def content_size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def file_list(upload: Upload) -> str:
    rows = [*upload.files.items(), ("in all", sum(map(content_size, upload.files.values())))]
    sizes = [f"{content if isinstance(content, int) else content_size(content):,}" for _, content in rows]
    width = max(map(len, sizes))
    return "\n".join(f"{count:>{width}} bytes  {name}" for count, (name, _) in zip(sizes, rows, strict=True))
