"""How `steerlab.sweep` works: cells, the plan of their forwards, the run."""
