"""The transformer's fast path: hoisted inputs, compiled blocks, CUDA graphs."""
