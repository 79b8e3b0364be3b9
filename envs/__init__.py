"""Where agents learn and are judged."""
