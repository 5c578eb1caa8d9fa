//! RPC tests.
