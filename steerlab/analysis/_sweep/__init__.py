"""The implementation of `steerlab.sweep`: settings, the forwards they need, and running them."""
