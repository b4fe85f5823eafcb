"""Markers that Keras's own tests have."""


def pytest_configure(config):
    config.addinivalue_line("markers", "requires_trainable_backend: of Keras's own tests; TensorFlow is one")
