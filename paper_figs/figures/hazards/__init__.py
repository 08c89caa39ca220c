"""Figures of the hazard: when runs collapse, how risky a schedule is, and warning inside a run."""
