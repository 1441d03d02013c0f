"""Recipes: one script a stage, one folder of settings a data set."""
