"""Studies of a finished run: calibration, robustness, disparity, transfer and more; none trains the student anew."""
