"""The OpenAI-compatible video API: its requests, responses, errors and description."""
