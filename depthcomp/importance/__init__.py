"""Importances of choices, one file each: by closed-form fits, by a little training, or from a file of losses."""
