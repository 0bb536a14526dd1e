"""Users' data: checked batches of images, example inputs, folders of photos, folds to fit and to judge on."""
