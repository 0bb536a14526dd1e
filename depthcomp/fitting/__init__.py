"""Convolutions in closed form: for one span, for all candidates, for a whole plan; and how far outputs then differ."""
