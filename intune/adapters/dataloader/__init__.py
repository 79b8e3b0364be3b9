"""A `torch.utils.data.DataLoader` as a tunable pipeline: fetch, collate, transfer.

What a user holds is `tunable.py`; a loop over it is an `epoch.py`, its work for the scheduler `tasks.py`, and where
that is done `workshop.py`. What must be known of the user's code first is found out in ``inspection/``; how dataset and
code reach other processes is ``sending/``.
"""
