"""The kernel engine: requests compiled to BPF iterators that the running kernel answers."""
