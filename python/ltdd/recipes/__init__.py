"""Methods and presets as plain data: which stages with which settings. Nothing here imports torch."""
