"""Search for a plan whose network meets the budget when measured."""
