"""What tests of several rooms share, imported as `helpers.<name>`."""
