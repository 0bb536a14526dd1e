"""The two-stage program of Kim et al. 2023, which the exact solver is compared with."""
