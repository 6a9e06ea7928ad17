"""The measurements behind the performance figures: mostly ratios of two things timed in the same run."""
