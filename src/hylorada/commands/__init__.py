"""What each console script does with its words."""
