"""Packs conversations into rows and joins them into Arrow columns."""

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

import numpy

from stages.core.prompts import IGNORED, TokenArrays

if TYPE_CHECKING:
    import pyarrow


def pack(lengths: list[int], capacity: int) -> list[list[int]]:
    """Groups the indices of `lengths` so that no group's lengths add up to more than `capacity`.

    Best-fit decreasing packing of training sequences: Ding et al. 2024, "Fewer Truncations Improve Language Modeling".
    Each conversation, longest first, joins the group with the least room that is enough.

    Args:
        lengths: in tokens, each at most `capacity`.
    """
    by_room: dict[int, list[int]] = {}  # room left → groups with it
    rooms: list[int] = []  # the keys of by_room that have groups, in order
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(rooms, lengths[index])
        if place == len(rooms):
            groups.append([])
            group, room = len(groups) - 1, capacity
        else:
            room = rooms[place]
            group = by_room[room].pop()
            if not by_room[room]:
                del rooms[place]
        groups[group].append(index)
        left = room - lengths[index]
        if not by_room.setdefault(left, []):
            insort(rooms, left)
        by_room[left].append(group)
    return groups


def text_windows(ids: numpy.ndarray, capacity: int, starts_word: numpy.ndarray) -> list[numpy.ndarray]:
    """Cuts a text into windows of nearly equal length, so that none is a rest of a few tokens.

    Each window begins with <s>. Only the last ends with </s>, so no cut teaches the model to stop. A cut is before a
    word where one is near.

    Args:
        ids: the text with its <s> and </s>.
        capacity: most tokens of a window, at least 2.
        starts_word: for each token of the vocabulary whether a text may be cut before it.
    """
    begin, body = ids[:1], ids[1:]
    windows = []
    while len(body):
        count = -(-len(body) // (capacity - 1))
        end = -(-len(body) // count)
        if count > 1:
            places = numpy.flatnonzero(starts_word[body[end // 2 + 1 : end + 1]])
            end = end // 2 + 1 + int(places[-1]) if len(places) else end
        windows.append(numpy.concatenate([begin, body[:end]]))
        body = body[end:]
    return windows


def row_schema() -> "pyarrow.Schema":
    import pyarrow

    tokens = pyarrow.list_(pyarrow.int32())
    return pyarrow.schema([("input_ids", tokens), ("labels", tokens), ("seq_lengths", tokens)])


def join_conversations(kept: list[TokenArrays], groups: list[list[int]]) -> "pyarrow.RecordBatch":
    """Makes a row of each group of conversations, in the columns of row_schema().

    Args:
        kept: (ids, labels) of each conversation.
        groups: indices into `kept`, from pack().
    """
    import pyarrow

    def lists(starts: numpy.ndarray, values: numpy.ndarray) -> pyarrow.ListArray:
        return pyarrow.ListArray.from_arrays(starts.astype(numpy.int32), values)

    packed = [kept[index] for group in groups for index in group]
    nothing = numpy.empty(0, dtype=numpy.int32)  # concatenate() needs at least one array
    ids = numpy.concatenate([nothing, *(ids for ids, _ in packed)])
    labels = numpy.concatenate([nothing, *(labels for _, labels in packed)])
    lengths = numpy.fromiter((len(ids) for ids, _ in packed), numpy.int32, len(packed))
    starts = numpy.cumsum([0, *lengths])
    # So that the last token of a conversation is not trained to predict the first token of the next.
    labels[starts[:-1]] = IGNORED
    rows = numpy.cumsum([0, *map(len, groups)])
    columns = [lists(starts[rows], ids), lists(starts[rows], labels), lists(rows, lengths)]
    return pyarrow.RecordBatch.from_arrays(columns, schema=row_schema())
