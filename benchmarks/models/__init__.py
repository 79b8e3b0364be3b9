"""What the bundled recommenders reach, against what is claimed for them."""
