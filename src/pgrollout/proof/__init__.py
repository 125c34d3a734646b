"""What proves a backup and a rollback, in words: how two catalogs and two contents differ, what was compared."""
