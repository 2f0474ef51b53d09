"""Faster products for layers that are frozen; numbers change by rounding only."""
