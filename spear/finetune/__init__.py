"""What every kind of fine-tuning shares: the encoder's start, its freezing, SpecAugment."""
