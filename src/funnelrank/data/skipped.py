"""What data.on_error: skip left out of a split: counts, and the first sentences of why."""

from dataclasses import asdict, dataclass, field
from typing import Any

from funnelrank.errors import DataError

SAMPLES = 10


@dataclass
class Skipped:
    """files: whole ones. groups: row groups, or slices of large ones, with their group_rows. rows: single ones."""

    files: int = 0
    groups: int = 0
    group_rows: int = 0
    rows: int = 0
    samples: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.files or self.groups or self.rows)

    def file(self, why: DataError) -> None:
        self.files += 1
        self._sample(why)

    def group(self, rows: int, why: DataError) -> None:
        self.groups += 1
        self.group_rows += rows
        self._sample(why)

    def row(self, rows: int, why: DataError) -> None:
        self.rows += rows
        self._sample(why)

    def words(self) -> str:
        """'2 files, 1 row group (4,096 rows) and 17 rows'."""
        plural = lambda count, name: f"{count:,} {name}" + ("" if count == 1 else "s")
        said = [plural(count, name) for count, name in ((self.files, "file"), (self.groups, "row group"),
                                                       (self.rows, "row")) if count]
        if self.groups:
            said[1 if self.files else 0] += f" ({plural(self.group_rows, 'row')})"
        return " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def _sample(self, why: DataError) -> None:
        self.samples += [m for m in why.messages if m not in self.samples][:SAMPLES - len(self.samples)]
