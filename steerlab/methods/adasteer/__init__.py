"""AdaSteer: rejection and compliance steering with strengths that depend on the input."""
