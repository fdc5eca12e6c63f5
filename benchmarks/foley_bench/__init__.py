"""Measures the deployment: every figure stands beside a baseline and a floor. Needs torch and a server."""
