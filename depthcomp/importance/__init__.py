"""Importances of choices, one file each: closed-form fits, short training, or a file of losses."""
