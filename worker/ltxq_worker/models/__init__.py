"""Models on disk and on the GPU: folders, downloads, weights, resident modules."""
