"""The trackers: one file each, whose name is `track.kind`; see `hylorada.extensions`."""
