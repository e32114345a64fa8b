"""What a run keeps on disk: files, checkpoints, run folders, and the store of stages."""
