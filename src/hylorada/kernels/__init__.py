"""Faster products and attention for layers that are frozen; numbers change by rounding only."""
