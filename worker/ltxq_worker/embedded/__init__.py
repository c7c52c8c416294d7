"""The servers that `ltxq demo`, `ltxq up` and the tests start on this machine."""
