from tests.serving.conftest import recommender  # noqa: F401 - the tiny recommender is a fixture here, too
