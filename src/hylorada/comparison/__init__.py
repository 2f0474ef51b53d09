"""From records to arms: which may be compared, and what differs between them."""
