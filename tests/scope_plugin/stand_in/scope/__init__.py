"""A stand-in for Daydream Scope 0.2.4, written for the tests.

It has only the parts that the plugin uses, and behaves like Scope as far as a plugin can observe.
"""
