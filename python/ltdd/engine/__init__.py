"""How any stage runs: device, random streams, memory, checkpoints, stored results, events."""
