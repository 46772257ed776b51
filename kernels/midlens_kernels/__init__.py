"""Fused operations, each with a plain PyTorch reference that defines its meaning."""
