"""The few parts of Daydream Scope 0.2.4 that the plugin touches, written anew for the tests: it
behaves as Scope does where a plugin can tell, and no further.
"""
