"""Performance gates: queries with limits beside the migrations, what a server does with them, and the verdicts."""
