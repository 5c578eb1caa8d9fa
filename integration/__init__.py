"""Tests on real daemons, real VMs and a real containerd; nothing here is imported by the product."""
