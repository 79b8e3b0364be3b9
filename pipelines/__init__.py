"""What runs: plan, stages, scheduler, executors, metrics, memory. Knows no agent."""
