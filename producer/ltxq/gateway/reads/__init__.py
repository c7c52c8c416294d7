"""Reads jobs for many concurrent callers without a thread for each."""
