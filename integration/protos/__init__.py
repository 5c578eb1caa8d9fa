"""Our .proto files against upstream's."""
