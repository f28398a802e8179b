"""Log of a run's child process, stored in the database: any host can show it, and it outlives the workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import models
from django.db.models import Max

PART_BYTES = 64_000
# Limit of a run's stored log, in bytes: what it writes beyond that stays in the file.
MOST_BYTES = 8_000_000


class RunLog(models.Model):
    """A part of a run's log; `position` and `until` are byte offsets in all that the run has written."""

    run = models.ForeignKey("training.TrainingRun", models.PROTECT, related_name="log_parts")
    position = models.PositiveBigIntegerField()
    until = models.PositiveBigIntegerField()
    text = models.TextField()

    class Meta:
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["run", "position"], name="one_log_part_per_position")]

    def __str__(self) -> str:
        return f"log of {self.run_id} from byte {self.position}"

    @classmethod
    def end_of(cls, run: Any) -> int:
        """Return the number of log bytes stored for the run."""
        return cls.objects.filter(run=run).aggregate(end=Max("until"))["end"] or 0

    @classmethod
    def keep(cls, run: Any, file: Path, start: int) -> int:
        """Store what the file has gained since byte `start`, at most PART_BYTES.

        Return the byte up to which it was stored. Only whole lines are stored if there are any. Nothing more is stored
        once the run's log has MOST_BYTES.
        """
        part, end = read_part(file, start), cls.end_of(run)
        if not part or end >= MOST_BYTES:
            return start
        text = part.decode(errors="replace").replace("\x00", "")
        cls.objects.create(run=run, position=end, until=end + len(part), text=text)
        return start + len(part)

    @classmethod
    def since(cls, run: Any, position: int) -> tuple[str, int]:
        """Return (log text from byte `position` on, the byte where it ends), of at most four stored parts.

        The text begins with the stored part that holds this byte, so it may begin earlier. Without such a part it is
        "", and the end is `position`.
        """
        parts = list(cls.objects.filter(run=run, until__gt=position)[:4])
        if not parts:
            return "", position
        return "".join(part.text for part in parts), parts[-1].until

    @classmethod
    def tail(cls, run: Any, characters: int) -> str:
        """Return the last `characters` characters of the log, from at most its eight last parts."""
        parts = cls.objects.filter(run=run).order_by("-position").values_list("text", flat=True)[:8]
        return "".join(reversed(list(parts)))[-characters:]


def read_part(file: Path, start: int) -> bytes:
    """Return at most PART_BYTES of the file from byte `start`, cut after the last line end if there is one.

    Returns b"" if there is no file.
    """
    if not file.is_file():
        return b""
    with file.open("rb") as stream:
        stream.seek(start)
        part = stream.read(PART_BYTES)
    whole = part.rfind(b"\n") + 1
    return part[:whole] if whole else part
