"""`python -m simulated`: play many seeds on all cores, or one of them with its trace."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field

import orjson

from simulated import world
from simulated.mutations import MUTATIONS

CHUNK = 100
TELL_EVERY_S = 20.0
MAX_TOLD = 20
"""So many failing seeds are printed; the rest are counted."""
COLLECT_EVERY = 50
QUIET = frozenset({"renew_lease", "take_over", "settle"})


@dataclass
class Tally:
    """Collect the results of some seeds, one after the other."""

    failed: list[tuple[int, list[str]]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    played: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Put another tally behind this one."""
        self.failed += other.failed
        self.faults += other.faults
        self.played += other.played

    @property
    def schedules(self) -> int:
        return self.played["schedules"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="simulated", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many schedules to play")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="play this one alone, and print what happens")
    parser.add_argument("--digest", action="store_true", help="with --seed: print the hash of its trace alone")
    parser.add_argument(
        "--mutation", help="a defect to put in first, from simulated/mutations.py; stops when it is found"
    )
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes to use (default: one for each core)"
    )
    parser.add_argument("--json", action="store_true", help="the summary as JSON, and progress on stderr")
    return parser.parse_args()


def _tell(line: str, *, aside: bool = False) -> None:
    stream = sys.stderr if aside else sys.stdout
    stream.write(f"{line}\n")
    stream.flush()


def _prepare(mutation: str | None) -> None:
    world.install()
    if mutation is not None:
        MUTATIONS[mutation]()
    gc.collect()
    gc.freeze()
    gc.disable()  # a schedule is over before its garbage matters


def _play(first: int, count: int) -> Tally:
    tally = Tally()
    for seed in range(first, first + count):
        try:
            played = world.play(seed)
        except Exception as error:  # noqa: BLE001 - a seed that breaks the simulation is a finding too
            tally.played["schedules"] += 1
            tally.failed.append((seed, [f"the simulation broke: {error!r}"]))
            continue
        tally.faults.update(played.faults)
        tally.played.update(played.played)
        if played.violations:
            tally.failed.append((seed, played.violations))
        if seed % COLLECT_EVERY == 0:
            gc.collect()
    return tally


def _play_all(args: argparse.Namespace) -> int:
    began = told = time.monotonic()
    whole = Tally()
    for part in _tallies(args):
        for seed, violations in part.failed[: MAX_TOLD - len(whole.failed)]:
            _tell(f"seed {seed}: " + "\n    ".join(violations[:5]), aside=args.json)
        whole.add(part)
        if (now := time.monotonic()) - told >= TELL_EVERY_S:
            told, rate = now, whole.schedules / (now - began)
            progress = f"{whole.schedules} of {args.seeds} schedules, {rate:.0f} a second, {len(whole.failed)} failed"
            _tell(progress, aside=args.json)
        if whole.failed and args.mutation is not None:
            break
    took_s = time.monotonic() - began
    if args.json:
        _tell(orjson.dumps(_as_json(args, whole, took_s), option=orjson.OPT_INDENT_2).decode())
    else:
        _summarise(whole)
        rate = whole.schedules / took_s
        _tell(f"{whole.schedules} schedules in {took_s:.0f} s ({rate:.0f} a second), {len(whole.failed)} failed")
    if whole.failed and args.mutation is None:
        _tell("see one again with `make simulate SEED=<seed>`", aside=args.json)
    return 1 if whole.failed else 0


def _summarise(whole: Tally) -> None:
    for title, counts in (("played", whole.played), ("faults", whole.faults)):
        _tell(title)
        for name, times in sorted(counts.items()):
            _tell(f"{times:12,}  {name}")


def _as_json(args: argparse.Namespace, whole: Tally, took_s: float) -> dict[str, object]:
    return {
        "first": args.first,
        "schedules": whole.schedules,
        "took_s": round(took_s, 1),
        "jobs": args.jobs,
        "failed": [{"seed": seed, "violations": violations} for seed, violations in whole.failed],
        "played": dict(sorted(whole.played.items())),
        "faults": dict(sorted(whole.faults.items())),
    }


def _tallies(args: argparse.Namespace) -> Iterator[Tally]:
    """Yield the result of each chunk of seeds, in their order."""
    size = CHUNK if args.mutation is None else CHUNK // 10
    end = args.first + args.seeds
    chunks = ((first, min(size, end - first)) for first in range(args.first, end, size))
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        under_way: deque[Future[Tally]] = deque()
        try:
            for chunk in chunks:
                under_way.append(pool.submit(_play, *chunk))
                if len(under_way) >= 4 * args.jobs:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _replay(seed: int, *, digest_only: bool) -> int:
    played = world.play(seed)
    if digest_only:
        _tell(played.digest())
        return 1 if played.violations else 0
    for at, *what in played.trace:
        if not (len(what) > 1 and what[1] in QUIET):
            _tell(f"{at:12.6f}  {'  '.join(str(word) for word in what)}")
    _tell(f"seed {seed}, trace {played.digest()}")
    for violation in played.violations:
        _tell(f"DOES NOT HOLD: {violation}")
    return 1 if played.violations else 0


def main() -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of strings belongs to a schedule
        os.execve(  # noqa: S606 - itself again
            sys.executable, [sys.executable, "-m", "simulated", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    args = _arguments()
    _prepare(args.mutation)
    return _play_all(args) if args.seed is None else _replay(args.seed, digest_only=args.digest)


if __name__ == "__main__":
    raise SystemExit(main())
