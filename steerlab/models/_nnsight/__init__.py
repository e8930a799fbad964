"""Everything of the project that imports nnsight: its traces, and the engines that run them here and elsewhere."""
