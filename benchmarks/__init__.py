"""Speed measurements. They print ratios within one run and decide no test."""
