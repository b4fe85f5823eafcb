"""What is measured of one trained model: `evaluate.evaluate` writes runs/KEY/evaluation/."""
