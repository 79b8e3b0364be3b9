"""What trains every workload: the loop, its checkpoints, optimisers, and how it stops."""
