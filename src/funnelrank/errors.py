"""What can be wrong, by who can act on it.

FunnelrankError             exit code 2: one readable message, no traceback
├── ConfigError             the config's author
├── DataError               the data's owner
├── ArtefactError           whoever moved or changed an artefact folder
└── TrainingError           a run that cannot go on: non-finite loss, full disk

Anything else that escapes is a fault of ours and exits with 1.
"""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 600            # characters of a sentence, from either end


class FunnelrankError(Exception):
    """One or more sentences for a person: where, what was found, what would do."""

    def __init__(self, *messages: str):
        super().__init__("\n".join(messages))
        self.messages = messages


class ConfigError(FunnelrankError):
    """What a user wrote in a config or passed as an argument."""


class DataError(FunnelrankError):
    """What a file or a table holds. A value quoted from it keeps a sentence one line of bounded length."""

    def __init__(self, *messages: str):
        super().__init__(*(_line(message) for message in messages))


class ArtefactError(FunnelrankError):
    """An artefact folder that is not what its manifest says."""


class TrainingError(FunnelrankError):
    """A run that had to stop."""


def _line(message: str) -> str:
    message = "\\n".join(message.splitlines())
    return message if len(message) <= 2 * LONGEST else f"{message[:LONGEST]} ... {message[-LONGEST:]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """" (did you mean 'click'?)", or "" where no known name is near."""
    near = get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def listing(names: Iterable[str], most: int = 8) -> str:
    """'a', 'b' and 'c', cut after `most`, for the end of a sentence."""
    names = [f"'{n}'" for n in names]
    if not names:
        return "none"
    if len(names) > most:
        return ", ".join(names[:most]) + f" and {len(names) - most} more"
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"
