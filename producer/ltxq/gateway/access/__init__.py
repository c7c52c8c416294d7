"""Access to the gateway: API keys, rate limits, browsers, limits on HTTP."""
