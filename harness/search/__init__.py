"""Search: who proposes the next trial, and which trials go on."""
