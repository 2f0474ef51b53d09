"""Running an experiment: load, adapt, train, evaluate, record."""
