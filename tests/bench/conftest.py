from tests.smollm2_fixture import smollm2_folder  # noqa: F401 - a fixture
