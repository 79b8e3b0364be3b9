"""What a DataLoader's code may be trusted with: threads, processes, being read ahead. Read, measured and compared."""
