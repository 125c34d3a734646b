"""Where two documents of the same execution differ, as far as TEXT can tell."""

from __future__ import annotations
