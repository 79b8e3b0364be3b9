"""From what a user calls his data to row groups of columns: paths, files, footers, storage that is slow or fails."""
