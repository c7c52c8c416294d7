"""Reading jobs for many callers at once, without a thread for each."""
