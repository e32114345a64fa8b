"""Pages of one file each: reports, comparisons and the charts on them."""
