"""Names: the one a run has without being given one, and those near to one that is not there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from torchtrack import naming


def name_of(uid: str) -> str:
    """The name of a run that was given none; a uid that is none names itself."""
    try:
        return naming.name_of(uid)
    except ValueError:
        return uid


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about a name that is not there."""
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    near += [other for other in known if re.search(re.escape(name), other) and other not in near][: 5 - len(near)]
    if near:
        return f"; did you mean {', '.join(near)}?"
    return f"; there are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}" if known else "; there are none yet"
