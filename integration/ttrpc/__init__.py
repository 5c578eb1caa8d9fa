"""Our ttrpc against the implementations of containerd (Go) and of Kata (Rust)."""
