"""Who decides how many slots each stage gets."""
