"""What surrounds training: checkpoints, resuming, callbacks, schedules, records of runs."""
