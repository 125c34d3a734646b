"""What the project claims of itself, measured beside what others do: see README.md in this folder."""
