"""How sure a number is, and what a difference is worth. Standard library only."""
