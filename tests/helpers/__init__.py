"""What several tests need: tiny data, tiny runs, and checks of messages."""
