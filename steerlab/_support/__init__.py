"""What every room needs and none owns: errors, hashing, atomic files, progress."""
