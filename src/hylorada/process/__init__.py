"""What any process needs: device, seeds, signals, log, terminal, files that survive a crash."""
