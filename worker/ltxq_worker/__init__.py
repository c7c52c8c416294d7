"""What runs beside the GPU: the worker, its models and pipelines, and the embedded servers."""
