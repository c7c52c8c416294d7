"""Loads a model's files into modules on the device."""
