"""What the settings keep of a volume's snapshots: `snapshots.keep`, or the rules of [retention]; never both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.settings import policy, retention
from snapfs.base.settings.config import Config
from snapfs.base.settings.retention import Verdict
from snapfs.base.settings.retention_settings import RetentionSettings
from snapfs.store.repository.repository import SnapshotRecord


@dataclass(frozen=True, slots=True)
class Keeping:
    """`keep`: as in [snapshots], 0 where `rules` decide. Both off: everything is kept."""

    keep: int
    rules: RetentionSettings

    @classmethod
    def of(cls, config: Config) -> Keeping:
        return cls(config.snapshots.keep, config.retention)

    @property
    def is_on(self) -> bool:
        """Whether anything may go by a rule."""
        return bool(self.keep) or self.rules.is_on

    def text(self) -> str:
        """The rules in one line, "" for none."""
        if self.keep:
            return f"snapshots.keep = {self.keep}"
        return retention.rules_text(self.rules) if self.rules.is_on else ""

    def drop_reason(self) -> str:
        """What the record of a drop says."""
        return self.text() if self.keep else retention.drop_reason(self.rules)


def verdicts(
    records: Sequence[SnapshotRecord],
    keeping: Keeping,
    now_ns: int,
    protected: Callable[[], Mapping[SnapshotNumber, str]],
) -> list[Verdict]:
    """The verdict on each, ascending. `protected` is called once; raises what that raises. Pure but for it."""
    stay = protected()
    if not keeping.keep:
        return retention.judge(records, keeping.rules, now_ns, stay)
    gone = set(policy.expired(records, keeping.keep))
    rule = (keeping.text(),)
    return [Verdict(each.number, () if each.number in gone else rule, stay.get(each.number, "")) for each in records]
