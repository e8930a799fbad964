"""KL-then-steer: a model is trained so that steering it disturbs it less, and is steered afterwards."""
