"""make bench WHAT=stall SCALE=1: measures and writes the tables into bench/README.md.

python -m bench [backfill|growth|stall|recovery|overhead …] [--scale 1] [--runs 3] [--only psql …] [--readme PATH]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg2

from bench import backfill, growth, overhead, recovery, stall
from bench.lab import Lab
from bench.report import machine, put
from bench.tools import TOOLS
from demo.server import Server, ThrowawayError

HERE = Path(__file__).resolve().parent
# What measures, and what it compares.
BENCHES: dict[str, tuple[Callable[..., Iterator[str]], Sequence[str]]] = {
    "backfill": (backfill.run, list(backfill.KEYS)),
    "growth": (growth.run, list(backfill.KEYS)),
    "stall": (stall.run, [stall.OURS, *TOOLS]),
    "recovery": (recovery.run, list(TOOLS)),
    "overhead": (overhead.run, list(map(str, overhead.HOSTS))),
}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends the program with a sentence where it makes no sense."""
    parser = argparse.ArgumentParser(prog="bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", help=f"of {', '.join(BENCHES)}; default: all")
    parser.add_argument("--scale", type=float, default=1, help="1 is 300,000 tasks")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="of what is compared, only this (repeatable)")
    parser.add_argument("--folder", type=Path, default=HERE.parent / ".bench")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md")
    args = parser.parse_args(argv)
    args.what = args.what or list(BENCHES)
    known = {name for what in args.what if what in BENCHES for name in BENCHES[what][1]}
    if unknown := [what for what in args.what if what not in BENCHES]:
        parser.error(f"there is no bench {unknown[0]!r}; name one of {', '.join(BENCHES)}.")
    if unknown := [name for name in args.only if name not in known]:
        parser.error(f"--only {unknown[0]} is nothing that is compared here; name one of {', '.join(sorted(known))}.")
    if args.scale <= 0 or args.runs < 1:
        parser.error(f"expected --scale over 0 and --runs of at least 1, found {args.scale:g} and {args.runs}.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    server = Server(args.folder)
    try:
        server.start()
        for what in args.what:
            where = machine(server.connection["server_version"])
            body = ""
            for body in BENCHES[what][0](Lab(server, args.folder), args.scale, args.runs, args.only):
                # At once: who stops it half-way has what was measured; read anew: others may have written.
                args.readme.write_text(put(args.readme.read_text(), what, f"{where}\n\n{body}"))
            print(f"\n{body}\n", flush=True)
    except (ThrowawayError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except psycopg2.Error as error:
        print(f"The throwaway server answered: {str(error).strip()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the tables hold what was measured until now.", file=sys.stderr)
        return 130
    finally:
        server.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
