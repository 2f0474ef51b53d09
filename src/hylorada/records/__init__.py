"""What a run leaves behind: its record, where its numbers came from, and how they are called."""
