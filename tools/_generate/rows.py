"""Answers the rows of a JSONL file. A later run continues the output of a stopped one."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from stages.core.paths import read_json, write_json
from stages.core.prompts import Encoder
from stages.runtime.errors import UserError
from stages.runtime.progress import progress
from tools._generate.speakers import Prompts, Speaker


@dataclass(frozen=True)
class Row:
    """A line of the input. `where` is its file and line number."""

    where: str
    fields: dict
    messages: list[dict[str, str]]


@dataclass(frozen=True)
class AnswerJob:
    """Rows to answer.

    settings: everything except the rows that the answers depend on; one output has one value of it.
    """

    rows: Path
    answers: Path
    field: str
    batch_size: int
    seed: int
    settings: dict[str, object]


def reject_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def parse_line(line: bytes, where: str) -> dict:
    try:
        fields = json.loads(line.decode("utf-8"), parse_constant=reject_constant)
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()  # json.loads reads 1e400 as infinity
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: a text has half of a surrogate pair, which is no character. Correct the row"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a line of JSON in UTF-8 ({error}). Correct or remove it") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: not an object with `prompt` or `messages`")
    return fields


def messages_of(fields: dict, where: str) -> list[dict[str, str]]:
    """The conversation to answer, from `prompt` (a text) or `messages`.

    Raises:
        UserError: The row has neither or both, or they have another form.
    """
    if ("prompt" in fields) == ("messages" in fields):
        raise UserError(f"{where}: a row needs one of `prompt` and `messages`")
    if "prompt" in fields:
        if not isinstance(fields["prompt"], str):
            raise UserError(f"{where}: `prompt` is not a text")
        return [{"role": "user", "content": fields["prompt"]}]
    turns = fields["messages"]
    whole = isinstance(turns, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if not whole:
        raise UserError(f"{where}: `messages` is not a list of objects with the texts `role` and `content`")
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if spoken != (["user", "assistant"] * len(spoken))[: len(spoken)] or len(spoken) % 2 == 0:
        raise UserError(
            f"{where}: `messages` must go user, assistant, … and end with the user, after at most one system turn; "
            f"they are {', '.join(map(repr, roles)) or 'none'}"
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file. Blank lines are skipped.

    Raises:
        UserError: A line is no row; with its number.
    """
    if not path.is_file():
        raise UserError(f"--input {path} is no file")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}:{number}"
                fields = parse_line(line, where)
                yield Row(where, fields, messages_of(fields, where))


def check_and_count(job: AnswerJob, prompts: Prompts) -> int:
    """How many rows there are. All are checked before the model is loaded, since the last answer may be hours away.

    Raises:
        UserError: A row cannot be answered.
    """
    count = 0
    for row in read_jsonl(job.rows):
        count += 1
        if taken := {job.field, f"{job.field}_ended"} & row.fields.keys():
            raise UserError(f"{row.where}: the row has a field {min(taken)} already. Choose another with --field")
        try:
            prompts.ids(row.messages)
        except UserError as error:
            raise UserError(f"{row.where}: {error}") from None
    return count


def settings_file(answers: Path) -> Path:
    return answers.with_name(f"{answers.name}.settings.json")


def check_settings(job: AnswerJob) -> None:
    """Checks that the answers which are already there were made with the same settings.

    Raises:
        UserError: They were not, or nothing says how they were made.
    """
    path, advice = settings_file(job.answers), f"Delete {job.answers} to start again, or choose another --output"
    try:
        before = read_json(path)
    except FileNotFoundError:
        raise UserError(
            f"{job.answers} has rows, but {path}, which says how they were made, is missing. {advice}"
        ) from None
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise UserError(f"{path}, which says how the rows of {job.answers} were made, is damaged. {advice}")
    for name in sorted(job.settings.keys() | before.keys()):
        if before.get(name) != job.settings.get(name):
            was, now = (json.dumps(settings.get(name), ensure_ascii=False) for settings in (before, job.settings))
            changed = "other weights" if name == "weights" else f"{name} {was}, not {now}"
            raise UserError(f"{job.answers} holds answers made with {changed}. {advice}")


@contextmanager
def answers_file(job: AnswerJob) -> Iterator[BinaryIO]:
    """Opens the output for this process only. A last line that a kill cut off is removed."""
    if job.answers.is_dir():
        raise UserError(f"--output {job.answers} is a folder. Name a file")
    try:
        job.answers.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--output {job.answers} lies below a file, not a folder. Name another") from None
    with open(job.answers, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process writes {job.answers}") from None
        file.seek(0)
        end = 0
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
        file.truncate(end)
        if end:
            check_settings(job)
        else:
            write_json(settings_file(job.answers), job.settings)
        file.seek(0)
        yield file


def count_done(file: BinaryIO, job: AnswerJob) -> int:
    """How many rows are answered already.

    Raises:
        UserError: The output's lines are not answers to the input's first rows.
    """
    rows, done = read_jsonl(job.rows), 0
    for done, line in enumerate(file, 1):
        fields = parse_line(line, f"{job.answers}:{done}")
        row = next(rows, None)
        asked = {name: value for name, value in fields.items() if name not in (job.field, f"{job.field}_ended")}
        if row is None or row.fields != asked or job.field not in fields:
            raise UserError(
                f"{job.answers}:{done} does not answer {row.where if row else 'any row of ' + str(job.rows)}: rows may "
                f"only be added at the end of {job.rows}. Delete {job.answers} to start again, or choose another "
                "--output"
            )
    return done


def line_of(row: Row, ids: list[int], job: AnswerJob, encoder: Encoder) -> bytes:
    answer = {job.field: encoder.decode(ids), f"{job.field}_ended": ids[-1:] == [encoder.eos]}
    return (json.dumps(row.fields | answer, ensure_ascii=False) + "\n").encode()


def answer_rows(job: AnswerJob, prompts: Prompts, load: Callable[[], Speaker]) -> tuple[int, int]:
    """Writes the rows that have no answer yet: the input's fields, the answer, and whether it ended.

    `batch_size` rows are answered in one batch. Where an earlier run stopped inside a batch, the whole batch is
    answered again, and only the missing rows are written. So no answer depends on where a run was stopped.

    Returns:
        (rows that were there, rows in all)
    """
    total = check_and_count(job, prompts)
    with answers_file(job) as file:
        done = count_done(file, job)
        if done == total:
            return done, total
        start, speaker = done - done % job.batch_size, load()
        rows = islice(read_jsonl(job.rows), start, None)
        with progress("generate", total - done, " rows") as shown:
            while group := list(islice(rows, job.batch_size)):
                answers = speaker.answer([prompts.ids(row.messages) for row in group], job.seed + start)
                missing = list(zip(group, answers, strict=True))[max(done - start, 0) :]
                file.writelines(line_of(row, ids, job, prompts.encoder) for row, ids in missing)
                file.flush()
                os.fsync(file.fileno())
                start += len(group)
                shown.advance(len(missing))
    return done, total
