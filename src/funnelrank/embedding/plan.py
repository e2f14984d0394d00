"""What the native engine is to do with a batch: every feature's way to the outputs, worked out once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from funnelrank.embedding.native import Native
from funnelrank.kernels import ID, JAGGED, NUMBER, POOL, Copy, Item

if TYPE_CHECKING:
    from funnelrank.embedding.tables import Embedding, Piece


def native_engine(embedding: Embedding) -> Native:
    """Outputs: flat, each group asked for, fields, (vectors, targets) of each history, linear, crosses."""
    layout, needs, tables = embedding.layout, embedding.needs, list(embedding.tables)
    items: list[Item] = []
    copies: list[Copy] = []
    names: list[str] = []
    outputs, jagged = [embedding.flat_width], [-1]

    def vector(kind: int, name: str, table: str, source: int, output: int, column: int) -> int:
        found, space = embedding.tables[table], layout.space[name]
        items.append(Item(kind, source, tables.index(table), found.offset[space], layout.size[space], output, column,
                          found.width, int(kind == POOL and layout.pool[name] == "mean")))
        names.append(name)
        return len(items) - 1

    def number(piece: Piece, output: int, column: int) -> None:
        last = items[-1] if items else None
        if last and last.kind == NUMBER and (last.source + last.width, last.output, last.column + last.width) == (
                piece.position, output, column):
            items[-1] = last._replace(width=last.width + 1)              # neighbours in the batch and in the output
        else:
            items.append(Item(NUMBER, piece.position, 0, 0, 0, output, column, 1))
            names.append(piece.name)

    def looked_up(piece: Piece, table: str, output: int, column: int) -> int:
        return vector(ID if piece.source == "ids" else POOL, piece.name, table, piece.position, output, column)

    at: dict[str, int] = {}                                              # feature -> its item in flat
    for piece in embedding.pieces:
        column = embedding.slices[piece.name].start
        if piece.source == "numbers":
            number(piece, 0, column)
        else:
            at[piece.name] = looked_up(piece, f"width_{piece.width}", 0, column)

    for members in [*(embedding.members[g] for g in needs.groups), *([embedding.embedded] if needs.fields else [])]:
        column = 0
        for piece in members:
            if piece.source == "numbers":
                number(piece, len(outputs), column)
            else:
                copies.append(Copy(at[piece.name], len(outputs), column))
            column += piece.width
        outputs.append(column)
        jagged.append(-1)

    for name, width in embedding.histories.items():
        k, target = layout.lists.index(name), layout.target[name]
        vector(JAGGED, name, f"width_{width}", k, len(outputs), 0)
        copies.append(Copy(at[target], len(outputs) + 1, 0))
        outputs += [width, embedding.width_of[target]]
        jagged += [k, -1]

    if needs.linear:
        width = embedding.tables["linear"].width
        for i, piece in enumerate(embedding.embedded):
            looked_up(piece, "linear", len(outputs), i * width)
        outputs.append(len(embedding.embedded) * width)
        jagged.append(-1)
    if embedding.crosses:
        width = embedding.tables["crosses"].width
        for i, name in enumerate(embedding.crosses):
            vector(ID, name, "crosses", layout.ids.index(name), len(outputs), i * width)
        outputs.append(len(embedding.crosses) * width)
        jagged.append(-1)
    return Native(list(embedding.tables.values()), items, copies, names, outputs, jagged, len(layout.lists))
