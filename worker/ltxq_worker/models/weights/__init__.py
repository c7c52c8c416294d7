"""From a model's files to modules on the device."""
