"""What the speed claims rest on: every figure is a ratio of two things measured in the same run."""
