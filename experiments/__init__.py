"""What each change of the model or its training is worth: arms, measurements, reports."""
