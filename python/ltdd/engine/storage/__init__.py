"""Keep a run on disk: files, checkpoints, run folders, and the store of stages."""
