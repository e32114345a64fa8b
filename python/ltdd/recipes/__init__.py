"""Methods and presets as plain data: which stages with which settings. No import of torch."""
