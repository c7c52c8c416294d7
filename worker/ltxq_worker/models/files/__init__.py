"""A model's files: downloaded, checked, their headers read. Without torch."""
