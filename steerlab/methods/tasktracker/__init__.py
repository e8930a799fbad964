"""TaskTracker: detection of injected instructions, by linear probes and by a triplet net."""
