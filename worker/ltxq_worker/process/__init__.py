"""The worker process: one GPU, one loaded model, one job after another."""
