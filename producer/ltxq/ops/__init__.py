"""What operators use: checks of an installation, fleet state and figures, orphaned objects."""
