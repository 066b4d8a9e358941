"""`make bench`: how fast runs are on this machine, beside what the machine can do at all."""
