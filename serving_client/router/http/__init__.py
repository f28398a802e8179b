"""HTTP side of the router: who may call, how a completion is proxied, and the state of its response."""
