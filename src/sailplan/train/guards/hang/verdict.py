"""Which rank holds the others up, by what every rank has told; pure.

Ranks that wait for one another look alike: none of them moves. The one that holds them up is

1. one whose process is gone, is stopped, or gives no answer;
2. one that has not entered a collective in which others wait, by the collectives' numbers;
3. one that has left a collective out: what has the same number on another rank is another one;
4. where no record tells, one that waits in no collective, or the one that has come least far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sailplan.train.guards.hang.beats import Beat
from sailplan.train.guards.hang.recorder import Group
from sailplan.train.guards.hang.stacks import Frame

_COMMUNICATION = ("torch/distributed/", "deepspeed/comm/", "sailplan/data/ranks.py")
"""Where the stack of a rank ends that waits for others, and no record tells."""

_WITHOUT_WORK = ("multiprocessing/", "selectors.py", "queue.py")
"""Where the stack of a DataLoader's worker ends that has nothing to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What is known of a rank when nothing has moved for too long."""

    beat: Beat
    idle_s: float
    """Since its last progress."""
    frames: Sequence[Frame] = ()
    """Where its main thread is, the innermost call first."""
    workers: Sequence[Sequence[Frame]] = ()
    """Where each of its DataLoader's workers is."""
    groups: Mapping[str, Group] = field(default_factory=dict)
    """Its collectives, by the name of the process group."""
    trouble: str = ""
    """What is wrong with its process, such as `is stopped`; nothing for one that answers."""

    @property
    def rank(self) -> int:
        """Its number."""
        return self.beat.rank

    @property
    def position(self) -> tuple[int, int]:
        """How far it has come; larger is further."""
        return self.beat.step, self.beat.moves

    @property
    def waits(self) -> bool:
        """Whether it waits for other ranks, by its record, else by its stack."""
        if any(group.waits for group in self.groups.values()):
            return True
        return bool(self.frames) and self.frames[0].words().startswith(_COMMUNICATION)

    def doing(self) -> str:
        """Says what it does since when, and where."""
        does = f"{self.beat.phase} for {self.idle_s:.0f} s in step {self.beat.step + 1}"
        return f"{does}, {place}" if (place := self.place()) else does

    def place(self) -> str:
        """Says where it is: in its DataLoader's worker, where it waits for that."""
        busy = [
            calls
            for calls in self.workers
            if calls and not calls[0].words().startswith(_WITHOUT_WORK)
        ]
        if busy and not self.waits:
            return f"a DataLoader's worker in {where(busy[0])}"
        return f"in {where(self.frames)}" if self.frames else ""

    def told(self) -> dict[str, Any]:
        """Returns what `heard` takes, for a file."""
        return {
            "session": self.beat.session,
            "rank": self.rank,
            "beat": asdict(self.beat),
            "idle_s": self.idle_s,
            "frames": self.frames,
            "workers": self.workers,
            "groups": {name: group.told() for name, group in self.groups.items()},
        }

    @classmethod
    def heard(cls, told: Mapping[str, Any]) -> Account:
        """Returns what a rank has told."""
        return cls(
            beat=Beat(**told["beat"]),
            idle_s=told["idle_s"],
            frames=[Frame(*call) for call in told["frames"]],
            workers=[[Frame(*call) for call in calls] for calls in told["workers"]],
            groups={name: Group.heard(group) for name, group in told["groups"].items()},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Who holds the run up, and how."""

    rank: int
    words: str


def where(calls: Sequence[Frame]) -> str:
    """Says where a stack is: its innermost call, and the innermost of ours around it."""
    ours = next((call for call in calls if call.words().startswith("sailplan/")), None)
    if ours is None or ours is calls[0]:
        return calls[0].words()
    return f"{calls[0].words()}, called from {ours.words()}"


def judge(accounts: Sequence[Account]) -> Verdict:
    """Names the rank that holds the others up.

    Args:
        accounts: Of every rank that is known of; one at least.
    """
    accounts = sorted(accounts, key=lambda one: (one.position, -one.idle_s, one.rank))
    for one in accounts:
        if one.trouble:
            return Verdict(rank=one.rank, words=f"rank {one.rank} {one.trouble}: {one.doing()}")
    if len(accounts) == 1:
        return _hung(accounts[0])
    return (
        _has_not_entered(accounts)
        or _has_left_out(accounts)
        or _waits_for_none(accounts)
        or _all_wait(accounts)
    )


def _has_not_entered(accounts: Sequence[Account]) -> Verdict | None:
    """Finds a rank that has not entered what others wait in."""
    for name, members in _groups(accounts):
        for slowest in (one for one in members if not one.waits):
            for other in members:
                number = other.groups[name].done + 1
                if not slowest.groups[name].entered < number <= other.groups[name].entered:
                    continue
                collective = _entered(other, name, number)
                if slowest.beat.step <= other.beat.step:
                    return _hung(slowest, collective)
                words = f"rank {slowest.rank} has left out a collective: {collective}, while it is"
                return Verdict(rank=slowest.rank, words=f"{words} {slowest.doing()}")
    return None


def _has_left_out(accounts: Sequence[Account]) -> Verdict | None:
    """Finds ranks for which the same number of a group is another collective."""
    for name, members in _groups(accounts):
        first = min(one.groups[name].done for one in members) + 1
        for number in range(first, max(one.groups[name].entered for one in members) + 1):
            kinds = _kinds(members, name, number)
            if len(kinds) < 2:
                continue
            # Who has left one out is further on; where that does not tell, fewer ranks have.
            kinds.sort(key=len)
            kinds.sort(key=lambda ranks: max(one.position for one in ranks), reverse=True)
            slowest, other = kinds[0][0], kinds[1][0]
            return Verdict(
                rank=slowest.rank,
                words=f"rank {slowest.rank} has left out a collective, or the others have entered "
                f"one too many: {_entered(slowest, name, number)}; "
                f"{_entered(other, name, number)}",
            )
    return None


def _kinds(members: Sequence[Account], name: str, number: int) -> list[list[Account]]:
    """Returns the ranks that have entered a collective by number, those of the same together."""
    kinds: list[list[Account]] = []
    for one in members:
        collective = one.groups[name].recent.get(number)
        if collective is None:
            continue
        for ranks in kinds:
            if ranks[0].groups[name].recent[number].is_like(collective):
                ranks.append(one)
                break
        else:
            kinds.append([one])
    return kinds


def _waits_for_none(accounts: Sequence[Account]) -> Verdict | None:
    """Finds the rank that has come least far of those that wait for no other."""
    return next((_hung(one) for one in accounts if not one.waits), None)


def _all_wait(accounts: Sequence[Account]) -> Verdict:
    """Names the rank that has come least far; each waits for the others."""
    slowest, furthest = accounts[0], accounts[-1]
    if slowest.position == furthest.position:
        words = "all ranks wait in the same place: the connection between them hangs, or a GPU"
    else:
        words = f"rank {furthest.rank}, which is further: {furthest.doing()}"
    return _hung(slowest, words)


def _hung(slowest: Account, more: str = "") -> Verdict:
    words = f"rank {slowest.rank} hung: {slowest.doing()}"
    return Verdict(rank=slowest.rank, words=f"{words}; {more}" if more else words)


def _groups(accounts: Sequence[Account]) -> Iterator[tuple[str, list[Account]]]:
    """Yields each process group with its ranks, where more than one is known."""
    for name in dict.fromkeys(name for one in accounts for name in one.groups):
        members = [one for one in accounts if name in one.groups]
        if len(members) > 1:
            yield name, members


def _entered(one: Account, name: str, number: int) -> str:
    """Says which collective of a group has this number on a rank."""
    collective = one.groups[name].recent[number]
    does = "waits" if one.groups[name].done < number else "was"
    words = f"rank {one.rank} {does} in {collective.kind} of {collective.shape}"
    words += f" in step {one.beat.step + 1}" if does == "waits" else ""
    return f"{words}, entered from {_outside(collective.frames)}" if collective.frames else words


def _outside(calls: Sequence[Frame]) -> str:
    """Says who asked for a collective: the innermost call of ours, else one outside of torch."""
    for start in ("sailplan/", ""):
        for call in calls:
            words = call.words()
            if words.startswith(start) and not words.startswith("torch/"):
                return words
    return calls[0].words()
