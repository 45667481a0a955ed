"""Every way of predicting."""
