"""Run any stage: device, random streams, memory, checkpoints, stored results, events."""
