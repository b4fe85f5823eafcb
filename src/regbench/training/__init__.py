"""One run: a model is built, trained and saved, and resumed where it was cut off."""
