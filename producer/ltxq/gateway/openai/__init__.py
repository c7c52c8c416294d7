"""The OpenAI-compatible video API: requests, responses, errors and description."""
