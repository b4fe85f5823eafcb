"""Search for strengths: train a few of many, choose by validation accuracy, and say how reliable the choice is."""
