"""What runs would take, told before they start: `hylorada-train ... dry_run=true`."""
