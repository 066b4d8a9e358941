"""`python -m simulated`: play many seeds on all cores, or one of them with its trace."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

from simulated import world
from simulated.mutations import MUTATIONS

CHUNK = 100
TELL_EVERY_S = 20.0
MAX_TOLD = 20
"""So many failing seeds are printed; the rest are counted."""
QUIET = frozenset({"renew_lease", "take_over", "settle"})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="simulated", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many schedules to play")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="play this one alone, and print what happens")
    parser.add_argument("--digest", action="store_true", help="with --seed: print the hash of its trace alone")
    parser.add_argument(
        "--mutation", help="a defect to put in first, from simulated/mutations.py; stops when it is found"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to use")
    return parser.parse_args()


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _prepare(mutation: str | None) -> None:
    world.install()
    if mutation is not None:
        MUTATIONS[mutation]()
    gc.collect()
    gc.freeze()
    gc.disable()  # a schedule is over before its garbage matters; it is collected between two chunks


def _play(first: int, count: int) -> list[tuple[int, list[str]]]:
    """The seeds of a chunk that failed, with what did not hold."""
    failed = []
    for seed in range(first, first + count):
        try:
            violations = world.play(seed).violations
        except Exception as error:  # noqa: BLE001 - a seed that breaks the simulation is a finding too
            violations = [f"the simulation broke: {error!r}"]
        if violations:
            failed.append((seed, violations))
        if seed % 25 == 0:
            gc.collect()
    return failed


def _play_all(args: argparse.Namespace) -> int:
    began = told = time.monotonic()
    played = failed = 0
    size = CHUNK if args.mutation is None else CHUNK // 10
    chunks = (
        (first, min(size, args.first + args.seeds - first))
        for first in range(args.first, args.first + args.seeds, size)
    )
    for count, failures in _results(args, chunks):
        played += count
        for seed, violations in failures:
            failed += 1
            if failed <= MAX_TOLD:
                _tell(f"seed {seed}: " + "\n    ".join(violations[:5]))
        if (now := time.monotonic()) - told >= TELL_EVERY_S:
            told = now
            _tell(f"{played} of {args.seeds} schedules, {played / (now - began):.0f} a second, {failed} failed")
        if failed and args.mutation is not None:
            break
    took_s = time.monotonic() - began
    _tell(f"{played} schedules in {took_s:.0f} s ({played / took_s:.0f} a second), {failed} failed")
    if failed and args.mutation is None:
        _tell("see one again with `make simulate SEED=<seed>`")
    return 1 if failed else 0


def _results(
    args: argparse.Namespace, chunks: Iterator[tuple[int, int]]
) -> Iterator[tuple[int, list[tuple[int, list[str]]]]]:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        under_way = {}
        try:
            while True:
                while len(under_way) < 2 * args.jobs and (chunk := next(chunks, None)) is not None:
                    under_way[pool.submit(_play, *chunk)] = chunk[1]
                if not under_way:
                    return
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    yield under_way.pop(future), future.result()
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
