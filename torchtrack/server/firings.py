"""What alert rules fired on, and whom that was told: in the catalog, so that no restart forgets or repeats it.

A rule fires on a run once and not again until that is over: an index of the table sees to it. With it are written the
deliveries it makes, one a target, in the same transaction: from then on it is told until it is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from torchtrack.server.rules import Rule
from torchtrack.server.tables import alert_rules, aware, deliveries, firings, iso, now

KEPT_UP: Final = timedelta(days=1)
"""How long a message is tried: what nobody could be told of for a day is no news."""
_AT_ONCE: Final = 100
_TEXT: Final = 3000

Outcome = Literal["waiting", "sent", "given up"]


@dataclass(frozen=True)
class Firing:
    """That a condition began to hold in a run.

    Attributes:
        uid: of the run.
        run: what it is called.
        what: one of several things that a rule finds in a run, such as the kind of a finding; else empty.
        text: what held, in words.
        since_us: when, by the clock of the run.
        step: at which step, if there is one.
        attempt: of the run.
    """

    uid: str
    run: str
    what: str
    text: str
    since_us: int
    step: int | None
    attempt: int


class Firings:
    """**Threads:** any."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, rule: Rule, firing: Firing, targets: Sequence[str]) -> int | None:
        """Record that a rule fired, and that these are to be told.

        Args:
            rule: as it was.
            firing: on what.
            targets: what serves each of them, by number from 1.

        Returns:
            Its number; None if it has fired on this already and that is not over, or the rule is there no more.
        """
        about = {"rule": rule.id, "project": rule.project, "name": rule.name, "severity": rule.severity}
        row = {**about, **vars(firing), "text": firing.text[:_TEXT], "run": firing.run[:256], "at": now()}
        try:
            with self._engine.begin() as connection:
                if connection.execute(sa.select(alert_rules.c.id).where(alert_rules.c.id == rule.id)).first() is None:
                    return None
                made = connection.execute(sa.insert(firings).values(**row)).inserted_primary_key
                number = int(made[0]) if made else 0
                for target, service in enumerate(targets, 1):
                    sent = {"firing": number, "target": target, "service": service[:64], "state": "waiting", "tries": 0}
                    connection.execute(sa.insert(deliveries).values(**sent))
        except IntegrityError:
            return None
        return number

    def clear(self, number: int, last_step: int | None, last_us: int) -> None:
        """Say that it is over, and where it held for the last time."""
        change = sa.update(firings).where(firings.c.id == number)
        with self._engine.begin() as connection:
            connection.execute(change.values(cleared=now(), last_step=last_step, last_us=last_us))

    def newest(self, rule: str) -> dict[tuple[str, str], dict[str, Any]]:
        """The newest firing of a rule on each run and `what`."""
        query = sa.select(firings).where(firings.c.rule == rule).order_by(firings.c.id)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return {(row["uid"], row["what"]): dict(row) for row in rows}

    def of(self, project: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest firings of a project, or of all, with what became of their deliveries, for an answer."""
        query = sa.select(firings).order_by(firings.c.id.desc()).limit(limit)
        query = query if project is None else query.where(firings.c.project == project)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
            wanted = deliveries.c.firing.in_([row["id"] for row in rows])
            told = connection.execute(sa.select(deliveries).where(wanted).order_by(deliveries.c.target)).mappings()
            by_firing: dict[int, list[dict[str, Any]]] = {}
            for each in told:
                sent = {name: each[name] for name in ("target", "service", "state", "tries")}
                by_firing.setdefault(each["firing"], []).append(sent)
        return [
            {**row, "at": iso(row["at"]), "cleared": iso(row["cleared"]), "told": by_firing.get(row["id"], [])}
            for row in rows
        ]

    # -- telling -------------------------------------------------------------------------------------------------------

    def waiting(self, target: int) -> list[dict[str, Any]]:
        """The firings that a target is still to be told of, the oldest first, with `tries`."""
        columns = (firings, deliveries.c.tries)
        joined = sa.select(*columns).join(deliveries, deliveries.c.firing == firings.c.id)
        query = joined.where((deliveries.c.target == target) & (deliveries.c.state == "waiting"))
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query.order_by(firings.c.id).limit(_AT_ONCE)).mappings()]

    def tried(self, target: int, rows: Sequence[dict[str, Any]], *, sent: bool) -> None:
        """Note that a message of these was sent, or that the target did not take it.

        Args:
            target: its number.
            rows: what `waiting` gave.
            sent: whether it was taken.
        """
        with self._engine.begin() as connection:
            for row in rows:
                tries, age = row["tries"] + 1, now() - (aware(row["at"]) or now())
                state: Outcome = "sent" if sent else "given up" if age > KEPT_UP else "waiting"
                where = (deliveries.c.firing == row["id"]) & (deliveries.c.target == target)
                connection.execute(sa.update(deliveries).where(where).values(state=state, tries=tries))
