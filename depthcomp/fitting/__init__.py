"""Closed-form fits: of one slot, of all candidates, of a whole plan; and the divergence of the changed outputs."""
