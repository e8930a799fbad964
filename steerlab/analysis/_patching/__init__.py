"""How `patch` computes its cells: packed into forwards, or estimated from gradients."""
