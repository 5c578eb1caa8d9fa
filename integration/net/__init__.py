"""The pod's network, with real CNI plugins and real VMs, in namespaces of the tests' own."""
