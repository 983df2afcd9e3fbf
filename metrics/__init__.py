"""What generated clips are measured by: each file is one family of metrics, on tensors and plain numbers."""
