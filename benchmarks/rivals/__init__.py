"""The loaders we are compared with, each used as its authors recommend; settings come from a sweep."""
