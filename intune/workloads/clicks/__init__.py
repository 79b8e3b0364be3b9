"""Models that predict clicks from dense and categorical features: DLRM and DCN-V2, and the tables they look up."""
