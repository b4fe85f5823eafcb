"""One run: build, train and save a model, and resume an interrupted training."""
