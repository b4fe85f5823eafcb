"""How strong: train few of many strengths, choose by validation, and say what the choice is worth."""
