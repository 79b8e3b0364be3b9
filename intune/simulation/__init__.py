"""How `intune simulate` shows what agents came to: a table, JSON, pictures, a page."""
