"""Says what is missing when this Python cannot make the project's environment; runs on any Python."""

import sys

if sys.version_info < (3, 11):
    sys.exit(
        "Python 3.11 or newer is needed and %s is %d.%d: name another one with `make PYTHON=python3.12 ...`."
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )

import importlib.util

if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
    sys.exit("%s lacks venv or ensurepip: on Debian and Ubuntu, install python3-venv." % sys.executable)
