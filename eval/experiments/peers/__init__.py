"""Models that ours are compared with, one file each. A file has `prepare(recipe)`, which lets its model take the place
of the recipe's and returns the callbacks of its training, or `fit(recipe)` where nothing is trained."""
