"""Webhooks: what is sent, how often, and HTTP that reaches no private network."""
