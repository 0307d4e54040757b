"""``effc compress``: which compression a model gets, from flags and recipe to the written model."""
