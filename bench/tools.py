"""The tools that apply the roadmap's SQL: each writes its files into a folder and says how it is started, and started
again: the same command each time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lab import Lab
from bench.roadmap import Unit
from tests.conftest import Database, Started

PATIENCE_S = 3600
ERROR = re.compile(r"ERROR:|Error:|fatal:|FAILED!")
BIN = Path(sys.executable).parent

Start = Callable[[], Started]


@dataclass(frozen=True)
class Outcome:
    ok: bool
    said: str  # the line that says why it failed where one does, else the last

    @staticmethod
    def of(started: Started) -> Outcome:
        """Waits for the end."""
        run = started.wait(PATIENCE_S)
        return Outcome(run.rc == 0, telling_line(run.output))


def telling_line(said: str) -> str:
    """The first error in an output, without the paths in front of it; where there is none, the last line."""
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()] or [""]
    errors = [line[found.start() :] for line in lines if (found := ERROR.search(line))]
    return (errors[:1] or lines[-1:])[0][:200]


def _start(database: Database, folder: Path, *line: str, **environment: str) -> Start:
    own = {"PGPASSFILE": database.passfile, "PGAPPNAME": "bench tool", "LC_ALL": "C.UTF-8"}
    return lambda: Started(list(line), os.environ | own | environment, folder / "said")


def psql(lab: Lab, database: Database, folder: Path, units: Sequence[Unit]) -> Start:
    script = folder / "all.sql"
    script.write_text("".join(unit.script() for unit in units))
    where = ("-h", database.host, "-p", str(database.port), "-U", "rollout", "-d", database.name)
    options = ("-X", "-q", "-v", "ON_ERROR_STOP=1")
    return _start(database, folder, lab.program("psql"), *options, *where, "-f", str(script))


ALEMBIC_ENV = """
import os
from alembic import context
from sqlalchemy import create_engine, pool
with create_engine(os.environ["BENCH_URL"], poolclass=pool.NullPool).connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
"""


def alembic_revision(number: int, unit: Unit) -> str:
    """A unit as a revision; what must not stand in a transaction is in an autocommit block, as alembic has it."""
    lines = [f"op.get_bind().exec_driver_sql({statement!r})" for statement in unit.statements]
    if not unit.transactional:
        lines = ["with op.get_context().autocommit_block():", *("    " + line for line in lines)]
    before = f"{number - 1:04}" if number > 1 else None
    head = f"from alembic import op\nrevision = '{number:04}'\ndown_revision = {before!r}\n"
    return head + "def upgrade():\n" + "".join(f"    {line}\n" for line in lines)


def alembic(_lab: Lab, database: Database, folder: Path, units: Sequence[Unit]) -> Start:
    (folder / "versions").mkdir()
    (folder / "env.py").write_text(ALEMBIC_ENV)
    (folder / "alembic.ini").write_text(f"[alembic]\nscript_location = {folder}\n")
    for number, unit in enumerate(units, 1):
        (folder / "versions" / f"{number:04}.py").write_text(alembic_revision(number, unit))
    url = f"postgresql+psycopg2://rollout@{database.host}:{database.port}/{database.name}"
    line = (sys.executable, "-m", "alembic", "-c", str(folder / "alembic.ini"), "upgrade", "head")
    return _start(database, folder, *line, BENCH_URL=url)


def dbmate(_lab: Lab, database: Database, folder: Path, units: Sequence[Unit]) -> Start:
    for number, unit in enumerate(units, 1):
        option = "" if unit.transactional else " transaction:false"
        text = f"-- migrate:up{option}\n" + ";\n".join(unit.statements) + ";\n\n-- migrate:down\n"
        (folder / f"2026010100{number:04}_{unit.name}.sql").write_text(text)
    url = f"postgres://rollout@{database.host}:{database.port}/{database.name}?sslmode=disable"
    options = ("--migrations-dir", str(folder), "--no-dump-schema")
    return _start(database, folder, str(BIN / "dbmate"), "--url", url, *options, "up")


def sqitch(lab: Lab, database: Database, folder: Path, units: Sequence[Unit]) -> Start:
    (folder / "deploy").mkdir()
    (folder / "sqitch.conf").write_text("[core]\n\tengine = pg\n")
    lines = ["%syntax-version=1.0.0", "%project=bench", ""]
    for unit in units:
        (folder / "deploy" / f"{unit.name}.sql").write_text(unit.script())
        lines.append(f"{unit.name} 2026-01-01T00:00:00Z bench <bench@example.org> # {unit.name}")
    (folder / "sqitch.plan").write_text("\n".join(lines) + "\n")
    target = f"db:pg://rollout@{database.host}:{database.port}/{database.name}"
    line = ("sqitch", "--chdir", str(folder), "deploy", "--client", lab.program("psql"), target)
    return _start(database, folder, *line, SQITCH_FULLNAME="bench", SQITCH_EMAIL="bench@example.org")


TOOLS: dict[str, Callable[[Lab, Database, Path, Sequence[Unit]], Start]] = {
    "psql": psql,
    "alembic": alembic,
    "dbmate": dbmate,
    "sqitch": sqitch,
}


def absent(tool: str) -> str:
    """Why a tool cannot be measured; '' where it can."""
    if tool == "sqitch" and not shutil.which("sqitch"):
        return "not measured: sqitch is not installed (Debian: `apt install sqitch`)"
    if tool in ("alembic", "dbmate") and not (BIN / tool).exists():
        return f"not measured: {tool} is not installed (`make bench` does it)"
    return ""


def version(lab: Lab, tool: str) -> str:
    """What the tool says of itself, such as 'dbmate version 2.37.0'."""
    program = {"psql": lab.program("psql"), "sqitch": "sqitch"}.get(tool, str(BIN / tool))
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return " ".join((done.stdout or done.stderr).split("\n")[0].split()[:4])


def ours(lab: Lab, database: Database, folder: Path, **variables: Any) -> Start:
    """ansible-playbook migrate.yml, as a user types it; `variables` are further -e."""
    given: Mapping[str, Any] = {"backup_dir": str(folder / "backups")} | variables
    playbook = lab.playbook()
    return lambda: playbook.start("migrate.yml", database=database, variables=given)
