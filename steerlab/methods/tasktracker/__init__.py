"""TaskTracker: detection of foreign tasks, by linear probes and by a triplet net."""
