"""The kinds of data sets: one file each, whose name is `dataset.kind`; see `data.kind`."""
