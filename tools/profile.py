"""Applies a profile of profiles/ to params.yaml, and explains the keys of params.yaml.

    python -m tools.profile mistral-7b             # changes params.yaml, prints what it changed and what it kept
    python -m tools.profile mistral-7b --dry-run   # only prints
    python -m tools.profile tiny                   # back to the values that params.yaml comes with
    python -m tools.profile --list                 # the profiles
    python -m tools.profile --keys lora            # the keys of a section, their legal values and their meaning
    python -m tools.profile --docs                 # writes docs/params.md
    python -m tools.profile --comments             # writes the comments of params.yaml from the schema

A profile holds only the values that it changes. A value in params.yaml that no profile has is your own and
stays. Nothing is written if the result would not be legal.
"""

from stages.runtime.command import command_parser, explained

import argparse
import sys
from pathlib import Path

from stages.core.params import Params
from stages.core.paths import PARAMS, write_text
from stages.core.yaml_files import read_yaml
from stages.runtime.counts import plural
from tools._profile.keys import as_page, as_text, params_keys
from tools._profile.profiles import Applied, apply, profile_names, read_profiles
from tools._profile.yaml_lines import set_comments

PAGE = Path("docs/params.md")
EVERY = "every section"


def report(name: str, applied: Applied, dry_run: bool) -> str:
    count = len(applied.changed)
    if not count:
        lines = [f"{name}: {PARAMS} has its values already"]
    else:
        verb = "would change" if dry_run else "changed"
        lines = [f"{name}: {verb} {plural(count, 'value')} of {PARAMS}"]
    lines += [f"  {line}" for line in applied.changed]
    if applied.kept:
        lines += [f"{'would keep' if dry_run else 'kept'} {len(applied.kept)}", *(f"  {line}" for line in applied.kept)]
        lines += [f"to take the profile's value instead, write it into {PARAMS}"]
    return "\n".join(lines)


def read_exactly(path: Path) -> str:
    """Reads a text with its own line breaks, once read_yaml() has found it legal."""
    read_yaml(path)
    return path.read_bytes().decode()


def commented(text: str) -> str:
    """Returns the text of params.yaml with the schema's descriptions as its comments."""
    return set_comments(text, {key.name: key.description for key in params_keys()})


def write_if_changed(path: Path, text: str) -> str:
    if path.exists() and path.read_bytes() == text.encode():
        return f"{path} is up to date"
    write_text(path, text)
    return f"wrote {path}"


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("tools.profile", __doc__)
    names = profile_names()
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"the profile to apply: {' or '.join(names)}")
    parser.add_argument("--dry-run", action="store_true", help="with NAME: print what would change, write nothing")
    parser.add_argument("--list", action="store_true", help="list the profiles")
    parser.add_argument(
        "--keys", nargs="?", const=EVERY, metavar="SECTION", help="explain the keys of a section, or all of them"
    )
    parser.add_argument("--docs", action="store_true", help=f"write {PAGE}")
    parser.add_argument("--comments", action="store_true", help=f"write the comments of {PARAMS} from the schema")
    options = parser.parse_args(arguments)
    asked = [options.name is not None, options.list, options.keys is not None, options.docs, options.comments]
    if sum(asked) != 1:
        parser.error(f"give one of NAME ({', '.join(names)}), --list, --keys, --docs, --comments")
    if options.dry_run and options.name is None:
        parser.error("--dry-run needs NAME")
    if options.name is not None and options.name not in names:
        parser.error(f"there is no profile {options.name}. The profiles are {', '.join(names)}")
    if options.keys not in (None, EVERY, *Params.model_fields):
        parser.error(f"there is no section {options.keys}. The sections are {', '.join(Params.model_fields)}")
    return options


def apply_to_file(name: str, dry_run: bool) -> str:
    profiles = read_profiles()
    applied = apply(profiles[name], profiles, read_exactly(PARAMS))
    if applied.changed and not dry_run:
        write_text(PARAMS, applied.text)
    return report(name, applied, dry_run)


def main(arguments: list[str]) -> str:
    options = read_options(arguments)
    if options.keys is not None:
        return as_text(None if options.keys == EVERY else options.keys)
    if options.docs:
        return write_if_changed(PAGE, as_page())
    if options.comments:
        return write_if_changed(PARAMS, commented(read_exactly(PARAMS)))
    if options.list:
        profiles = read_profiles().values()
        width = max(len(profile.name) for profile in profiles)
        return "\n".join(f"{profile.name:{width}}  {profile.title}" for profile in profiles)
    return apply_to_file(options.name, options.dry_run)


if __name__ == "__main__":
    with explained("profile"):
        print(main(sys.argv[1:]))
