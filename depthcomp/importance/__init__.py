"""What a choice costs in loss: by closed-form fits, by a little training, or from a file; journalled and shared out."""
