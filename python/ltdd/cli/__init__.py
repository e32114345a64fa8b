"""From words to calls. Nothing here imports torch before a command runs."""
