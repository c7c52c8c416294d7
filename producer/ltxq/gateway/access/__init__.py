"""Who may ask, and how much: API keys, rates, browsers, bounds on HTTP."""
