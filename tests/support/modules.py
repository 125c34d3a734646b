"""Ansible modules of this project, for what needs no Ansible around them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import ansible.module_utils

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


def load_module(name: str) -> ModuleType:
    """plugins/modules/<name>.py; on a host Ansible puts plugins/module_utils where the module looks for them."""
    helpers = str(PLUGINS / "module_utils")
    if helpers not in ansible.module_utils.__path__:
        ansible.module_utils.__path__.append(helpers)
    spec = importlib.util.spec_from_file_location(name, PLUGINS / "modules" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
