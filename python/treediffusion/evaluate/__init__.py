"""Measures of trained models: clustering, likelihood, image quality, and the figures of both."""
