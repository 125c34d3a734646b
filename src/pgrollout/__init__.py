"""The engine behind the playbooks: pure functions that read migrations, compare them with a catalog and plan."""

__version__ = "0.1.0"
