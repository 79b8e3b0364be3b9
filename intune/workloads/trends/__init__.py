"""Which items are about to trend: TrendRec and what it is compared with."""
