"""The router's HTTP side: who may call, how a completion is proxied, and the state of its response."""
