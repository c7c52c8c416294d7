"""Downloads a model's files, checks them and reads their headers. Imports no torch."""
