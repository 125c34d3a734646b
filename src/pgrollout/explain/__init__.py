"""EXPLAIN plans: reading them in every format, and what can be told from them."""
