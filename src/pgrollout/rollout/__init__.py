"""A rollout as its folder has it: phases, migrations and their gates, read as a whole, and looked through by lint."""
