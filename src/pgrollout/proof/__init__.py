"""What a rollback's proof says: how two catalogs and two contents differ."""
