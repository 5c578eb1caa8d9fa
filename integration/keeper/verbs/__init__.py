"""The real launcher, keeper and daemon over a guest that is a thread of the test: every verb, killed at every step of it."""
