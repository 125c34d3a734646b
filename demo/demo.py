"""The demo: a throwaway PostgreSQL, realistic data, the whole rollout, a summary; each stage timed.

    python -m demo.demo [--folder .demo] [--scale 1]

Every stage is the command that a user would type, and is repeatable: run again, the demo goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg2

from demo.load import DATABASE, SEED, load
from demo.server import Server, ThrowawayError, psql_hint

ROOT = Path(__file__).resolve().parent.parent


def start(server: Server) -> str:
    began = "started" if server.start() else "runs already"
    beside = "" if server.socket_dir else "; the path is too long for a Unix socket, so TCP only"
    return f"PostgreSQL {server.connection['server_version']} {began} on {server.host}:{server.port}{beside}"


def fill(server: Server, scale: str, seed: str) -> str:
    loaded = load(server, DATABASE, scale, seed)
    rows = f"{loaded.rows.get('project_management_tasks', 0):,} tasks, {sum(loaded.rows.values()):,} rows"
    return f"{DATABASE}: {rows} ({loaded.label})" if loaded.fresh else f"{DATABASE} is there already: {rows}"


def play(server: Server, playbook: str, *arguments: str) -> str:
    """Run one playbook as a user types it."""
    command = ["ansible-playbook", playbook, "-l", "local", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=_environment(server.folder), stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise ThrowawayError(
            f"`{' '.join(command)}` ended with {done.returncode}, as told above. "
            "The server is left running: run `make demo` again to go on, `make demo-down` to remove it."
        )
    return " ".join(command)


FULL_ROLLBACK = ("--tags", "full", "-e", "rollback_confirm=local", "-e", "rollback_expect_equal_content=true")


def summarise(server: Server) -> str:
    subprocess.run([sys.executable, "-m", "demo.summary", "--folder", str(server.folder)], cwd=ROOT, check=True)
    return psql_hint(server)


def _environment(folder: Path) -> dict[str, str]:
    # libpq's own variables speak of another server
    kept = {name: value for name, value in os.environ.items() if not re.match("PG(?!ROLLOUT_)", name)}
    # what Ansible keeps in the home folder otherwise: the demo leaves nothing behind
    home = folder / "ansible"
    own = {
        "ANSIBLE_HOME": str(home),
        "ANSIBLE_REMOTE_TMP": str(home / "tmp"),
        "ANSIBLE_ASYNC_DIR": str(home / "async"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    return kept | own


def run(server: Server, scale: str, seed: str, circle: bool) -> list[tuple[str, float]]:
    """Run all stages, with `circle` also all the way back and forward again; (name, seconds) of each."""
    stages: list[tuple[str, Callable[[], str]]] = [
        ("server", lambda: start(server)),
        ("data", lambda: fill(server, scale, seed)),
        ("rollout", lambda: play(server, "migrate.yml")),
    ]
    if circle:
        stages += [
            ("validation", lambda: play(server, "validate.yml")),
            ("rollback", lambda: play(server, "rollback.yml", *FULL_ROLLBACK)),
            ("rollout again", lambda: play(server, "migrate.yml")),
        ]
    stages.append(("summary", lambda: summarise(server)))
    timings = []
    for name, stage in stages:
        began = time.monotonic()
        said = stage()
        timings.append((name, time.monotonic() - began))
        print(f"[{name}] {said} ({timings[-1][1]:.1f} s)", flush=True)
    return timings


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default=ROOT / ".demo", type=Path)
    parser.add_argument("--scale", default="1", help="1 is 300,000 tasks, 10 is the growth plan")
    parser.add_argument("--seed", default=SEED)
    parser.add_argument("--circle", action="store_true", help="also roll everything back with proof and apply it again")
    args = parser.parse_args(argv)
    try:
        timings = run(Server(args.folder), args.scale, args.seed, args.circle)
    except ThrowawayError as error:
        print(error, file=sys.stderr)
        return 1
    except psycopg2.Error as error:
        print(f"The throwaway server answered: {str(error).strip()}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        print("\nStopped. Run `make demo` again to go on, `make demo-down` to remove it.", file=sys.stderr)
        return 130
    print(
        f"Total {sum(seconds for _, seconds in timings):.0f} s. The server keeps running; `make demo-down` removes it."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
