"""AlphaSteer: steering in the null space of benign inputs, and its gate as a detector."""
