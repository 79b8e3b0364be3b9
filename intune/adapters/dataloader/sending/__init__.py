"""How a DataLoader's dataset and code reach worker processes, and what runs of them there."""
