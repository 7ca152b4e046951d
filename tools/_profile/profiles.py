"""Profiles: sparse sets of values for params.yaml, and how one is applied to it."""

from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml.error import YAMLError

from stages.core.params import check_params
from stages.core.paths import PARAMS
from stages.core.yaml_files import read_yaml, read_yaml_text
from stages.runtime.errors import UserError
from tools._profile.keys import params_keys
from tools._profile.yaml_lines import set_values, source_text

PROFILES = Path("profiles")
USUAL = "tiny"  # the profile with the usual value of each key that another profile sets
MISSING = object()
# {section: {source: the keys of the section that it reads}}
READ_BY_SOURCE = {
    "model": {"path": ("path",), "hub": ("id", "revision")},
    "data": {"stdlib": (), "file": ("path",), "url": ("url", "sha256"), "hub": ("id", "revision")},
}
# Keys that fit the data: they stay with data of the user's own. Other fractions would move rows between splits.
ABOUT_DATA = ("data.limit", "clean.validation_fraction", "clean.test_fraction")


@dataclass(frozen=True)
class Profile:
    """Values by dotted key, and the same values as their file spells them."""

    name: str
    title: str
    values: dict[str, object]
    spelled: dict[str, str]


@dataclass(frozen=True)
class Applied:
    """The new text of params.yaml, and a line for each value that changed or was kept."""

    text: str
    changed: list[str]
    kept: list[str]


def profile_names(folder: Path = PROFILES) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def value_at(values: object, key: str) -> object:
    """Returns the value at a dotted key, or MISSING."""
    for name in key.split("."):
        values = values.get(name, MISSING) if isinstance(values, dict) else MISSING
    return values


def put(values: dict, key: str, value: object) -> None:
    *sections, last = key.split(".")
    for name in sections:
        values = values.setdefault(name, {})
    values[last] = value


def read_profile(path: Path) -> Profile:
    """Reads a profile.

    Raises:
        UserError: the file is not valid YAML, or has a key that params.yaml does not have.
    """
    sections = read_yaml(path)
    if not isinstance(sections, dict):
        raise UserError(f"{path} has no keys. It needs at least one, such as seed: 42")
    values: dict[str, object] = {}
    for name, value in sections.items():
        values |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    if unknown := values.keys() - {key.name for key in params_keys() if not key.is_section}:
        raise UserError(f"{path}: {PARAMS} has no {', '.join(sorted(unknown))}. Correct the spelling or remove it")
    text = path.read_text(encoding="utf-8")
    title = text.partition("\n")[0].lstrip("# ") if text.startswith("#") else ""
    return Profile(path.stem, title, values, {key: source_text(text, key) for key in values})


def read_profiles(folder: Path = PROFILES) -> dict[str, Profile]:
    """Reads all profiles.

    Raises:
        UserError: a profile sets a key whose usual value is unknown, so that no other profile could undo it.
    """
    profiles = {name: read_profile(folder / f"{name}.yaml") for name in profile_names(folder)}
    if USUAL not in profiles:
        raise UserError(f"{folder / USUAL}.yaml is missing. Restore it from Git, and run this in the repository's root")
    for profile in profiles.values():
        if unknown := [key for key in profile.values if key not in profiles[USUAL].values]:
            raise UserError(
                f"{folder / profile.name}.yaml sets {', '.join(unknown)}, but {folder / USUAL}.yaml does not. Put the "
                "usual value there, so that a switch back restores it"
            )
    return profiles


def same(left: object, right: object) -> bool:
    """Tells whether two values are equal. True and 1 are not."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def shown(value: object) -> str:
    return "unset" if value is MISSING else "null" if value is None else str(value)


def is_own(key: str, value: object, profiles: dict[str, Profile]) -> bool:
    """Tells whether a value is the user's own: no profile has it, though some profile sets the key."""
    known = [profile.values[key] for profile in profiles.values() if key in profile.values]
    return bool(known) and value is not MISSING and not any(same(value, other) for other in known)


def own_sources(profiles: dict[str, Profile], values: object) -> dict[str, str]:
    """Returns {key: the user's own key that it reads} for each `source` that stays, such as model.source."""
    kept = {}
    for section, sources in READ_BY_SOURCE.items():
        source = value_at(values, f"{section}.source")
        read = [f"{section}.{key}" for key in (sources.get(source, ()) if isinstance(source, str) else ())]
        kept |= {f"{section}.source": key for key in read if is_own(key, value_at(values, key), profiles)}
    return kept


def is_unread(key: str, source: object) -> bool:
    """Tells whether a key of `model` or `data` has no meaning with a source. DVC reads model.path with any source."""
    section, _, name = key.partition(".")
    sources = READ_BY_SOURCE.get(section, {})
    read = sources.get(source, ()) if isinstance(source, str) else ()
    return key != "model.path" and name not in read and any(name in keys for keys in sources.values())


def plan(profile: Profile, profiles: dict[str, Profile], values: object) -> tuple[dict[str, object], list[str]]:
    """Returns {key: new value} for params.yaml, and a line for each value that stays because it is the user's own.

    A value may change if it is missing or if any profile has it for that key. A key that the profile does not set gets
    its usual value. A key that says where the model or the data come from gets no value that nothing would read. A key
    that fits the data stays if they are the user's own.
    """
    changes, kept = {}, []
    goals = profiles[USUAL].values | profile.values
    sources = own_sources(profiles, values)
    own_data = "data.source" in sources or is_own("data.source", value_at(values, "data.source"), profiles)
    for key, wanted in goals.items():
        now = value_at(values, key)
        source = f"{key.partition('.')[0]}.source"
        source = changes.get(source, value_at(values, source))
        if same(now, wanted) or (wanted is not None and is_unread(key, source)):
            continue
        if key in sources:
            kept.append(f"{key}: {shown(now)} (it reads your own {sources[key]}; the profile has {shown(wanted)})")
        elif own_data and key in ABOUT_DATA and now is not MISSING:
            kept.append(f"{key}: {shown(now)} (it is about your own data; the profile has {shown(wanted)})")
        elif is_own(key, now, profiles):
            kept.append(f"{key}: {shown(now)} (your own value; the profile has {shown(wanted)})")
        else:
            changes[key] = wanted
    return changes, kept


def change_text(text: str, changes: dict[str, object], spelled: dict[str, str]) -> str:
    """Returns the text of params.yaml with these changes.

    Args:
        spelled: the new values as YAML, by key.

    Raises:
        UserError: the result would not be legal, or the layout of the text does not allow the changes.
    """
    expected = read_yaml_text(text)
    try:
        text = set_values(text, {key: spelled[key] for key in changes})
        for key, value in changes.items():
            put(expected, key, value)
        after = read_yaml_text(text)
    except YAMLError:
        after = None
    if after != expected:
        lines = [f"{key}: {shown(value)}" for key, value in changes.items()]
        raise UserError("\n".join([f"the layout of {PARAMS} is unusual. Set these values by hand:", *lines]))
    check_params(after)
    return text


def apply(profile: Profile, profiles: dict[str, Profile], text: str) -> Applied:
    """Applies a profile to the text of params.yaml.

    Raises:
        UserError: params.yaml is not legal, or the profile's values do not go together with the user's own.
    """
    before = read_yaml_text(text)
    changes, kept = plan(profile, profiles, before)
    try:
        text = change_text(text, changes, profiles[USUAL].spelled | profile.spelled)
    except UserError as error:
        check_params(before)  # if it was not legal before, this is the message
        raise UserError(
            f"{profile.name} cannot be applied to your {PARAMS}. Nothing was written. Change this first:\n{error}"
        ) from None
    changed = [f"{key}: {shown(value_at(before, key))} → {shown(value)}" for key, value in changes.items()]
    return Applied(text, changed, kept)


def profile_values(name: str, folder: Path = Path()) -> dict:
    """Returns the values of params.yaml in `folder` with all values of a profile, whatever is there now."""
    profiles = read_profiles(folder / PROFILES)
    values = read_yaml(folder / PARAMS)
    for key, value in (profiles[USUAL].values | profiles[name].values).items():
        put(values, key, value)
    return values
