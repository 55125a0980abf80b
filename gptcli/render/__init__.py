"""The world of the terminal: records in, text and pictures out. Nothing here imports torch."""
