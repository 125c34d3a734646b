"""Plugins load in Ansible and are documented; roles keep the conventions of this project."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from pgrollout.errors import RolloutError
from pgrollout.migration import plan

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
TASK_FILES = sorted([*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/tasks/*.yml")])
MAX_TASK_FILE_LINES = 80


def module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


PLUGIN = module("plugins/filter/migration.py")
FILTERS = PLUGIN.FilterModule().filters()


def ansible_doc(kind: str, *names: str) -> dict[str, Any]:
    """What Ansible itself knows of these plugins. One that cannot be imported is only a warning elsewhere."""
    program = Path(sys.executable).parent / "ansible-doc"
    done = subprocess.run(
        [str(program), "-t", kind, "--json", *names],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_filter_is_documented_as_it_is() -> None:
    sidecars = {path.stem for path in (ROOT / "plugins" / "filter").glob("*.yml")}
    assert sidecars == set(FILTERS)
    found = ansible_doc("filter", *sorted(FILTERS))
    for name, function in ((name, PLUGIN.function(path)) for name, path in PLUGIN.FUNCTIONS.items()):
        documented = found[name]["doc"]["options"]
        _, *arguments = inspect.signature(function).parameters.values()
        assert set(documented) == {"_input", *(argument.name for argument in arguments)}, name
        assert found[name]["doc"].get("positional", "") == ", ".join(argument.name for argument in arguments), name
        optional = {argument.name: argument.default for argument in arguments if argument.default is not argument.empty}
        assert {key: option["default"] for key, option in documented.items() if "default" in option} == optional, name
        assert found[name]["examples"].strip(), name
        assert found[name]["return"]["_value"]["type"], name


@pytest.mark.parametrize("name", ["controller", "lint", "rollout"])
def test_every_lookup_loads_and_is_documented(name: str) -> None:
    found = ansible_doc("lookup", name)[name]
    assert found["doc"]["short_description"]
    assert found["examples"].strip()
    assert found["return"]


def test_a_filter_gives_a_sentence_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise RolloutError("found this, expected that; do so.")

    monkeypatch.setattr(plan, "materialized_views", refuse)
    with pytest.raises(AnsibleFilterError, match=r"^found this, expected that; do so\.$"):
        FILTERS["materialized_views"]({})


def test_filters_cost_nothing_before_they_are_called() -> None:
    """Ansible loads every filter in the process of every task."""
    code = (
        "import runpy, sys; runpy.run_path('plugins/filter/migration.py')['FilterModule']().filters(); "
        "print([name for name in sys.modules if name.startswith(('pgrollout', 'pglast'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_lookup_hands_over_a_sentence(tmp_path: Path) -> None:
    lookup = module("plugins/lookup/rollout.py")
    (tmp_path / "phase1").mkdir()
    assert lookup._load(str(tmp_path), "public") == {"error": f"{tmp_path}/phase1/phase.yml: the file is missing."}


# ---- roles


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options(role: str) -> dict[str, dict[str, Any]]:
    """The options of all entry points; one that several have must be the same in each."""
    found: dict[str, dict[str, Any]] = {}
    for entry in read(ROOT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"].values():
        for name, option in entry.get("options", {}).items():
            assert found.setdefault(name, option)["type"] == option["type"], name
            assert found[name].get("default") == option.get("default"), name
    return found


@pytest.mark.parametrize("role", ROLES)
def test_argument_specs_are_the_defaults(role: str) -> None:
    path = ROOT / "roles" / role / "defaults" / "main.yml"
    defaults = (read(path) or {}) if path.exists() else {}
    specified = {name: option["default"] for name, option in options(role).items() if not option.get("required")}
    assert specified == defaults
    assert all(name.startswith(f"{role}_") and option["description"] for name, option in options(role).items())


@pytest.mark.parametrize("role", ROLES)
def test_every_entry_point_that_is_called_has_a_spec(role: str) -> None:
    specified = set(read(ROOT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"])
    called = {
        task["ansible.builtin.include_role"].get("tasks_from", "main")
        for path in [*ROOT.glob("playbooks/*.yml"), *TASK_FILES]
        for task in tasks(read(path))
        if task.get("ansible.builtin.include_role", {}).get("name") == role
    }
    assert specified == called


@pytest.mark.parametrize("role", ROLES)
def test_readme_says_what_an_operator_asks(role: str) -> None:
    text = (ROOT / "roles" / role / "README.md").read_text(encoding="utf-8")
    for word in ("## Outcome", "## Inputs", "Idempotent", "Atomic", "Locks", "Rollback", "## Example"):
        assert word in text, word


def tasks(found: Any) -> Iterator[dict[str, Any]]:
    """Every task of a file, the ones in blocks and plays included, and the blocks themselves."""
    for item in found:
        if "hosts" not in item and "ansible.builtin.import_playbook" not in item:
            yield item
        for key in ("tasks", "block", "rescue", "always"):
            yield from tasks(item.get(key, []))


def test_every_task_is_named_and_task_files_stay_small() -> None:
    for path in TASK_FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_TASK_FILE_LINES, path
        for task in tasks(read(path)):
            assert re.match(r"([a-z_]+ \| )?[A-Z{]", task.get("name", "")), f"{path}: {task}"


# What one role hands to the next: the rollout and the plan.
SHARED = {"__rollout", "__facts", "__plan"}


@pytest.mark.parametrize("role", ROLES)
def test_internals_carry_the_roles_name(role: str) -> None:
    for path in sorted((ROOT / "roles" / role / "tasks").glob("*.yml")):
        for task in tasks(read(path)):
            internal = {task["register"]} if "register" in task else set()
            internal |= task.get("ansible.builtin.set_fact", {}).keys() - {"cacheable"}
            internal |= {name for key, name in task.get("loop_control", {}).items() if key.endswith("_var")}
            wrong = {name for name in internal - SHARED if not name.startswith(f"__{role}_")}
            assert not wrong, f"{path}: {wrong}"
