"""What a run shares with others: cores, memory, and what a machine may not have."""
