"""What a trained model is given from outside, and the forms that it leaves in."""
