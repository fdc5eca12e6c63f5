"""Runs generations: admission, queue, worker threads, and the store of long-running generations."""
